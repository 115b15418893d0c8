"""The addresses of checkpoints: `tinker://<run>/<kind>/<name>`."""

from __future__ import annotations

import re
from typing import Self

from tinkex.errors import TinkerPathError
from tinkex.types._model import WireModel
from tinkex.types.runs import CheckpointType

SCHEME = "tinker://"

SEGMENTS: dict[str, CheckpointType] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}
"""The middle part of a path, and the kind of checkpoint it says."""

MAX_PART_LENGTH = 200
# A name becomes a folder: no separator, no control character, nothing that climbs or hides.
_PART = re.compile(r"[A-Za-z0-9_\-:+=@][A-Za-z0-9_\-:+=@.]*")


class ParsedCheckpointTinkerPath(WireModel):
    """A path, taken apart."""

    tinker_path: str
    training_run_id: str
    checkpoint_type: CheckpointType
    checkpoint_id: str
    """`<kind>/<name>`."""

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self.checkpoint_id.partition("/")[2]

    @classmethod
    def from_tinker_path(cls, tinker_path: str) -> Self:
        """Take a path apart.

        Raises:
            TinkerPathError: when it is not of the form.
        """
        parts = tinker_path.removeprefix(SCHEME).split("/")
        if not tinker_path.startswith(SCHEME) or len(parts) != 3 or parts[1] not in SEGMENTS:
            raise TinkerPathError(
                f"{tinker_path[:300]!r} is no checkpoint path. One looks like "
                "tinker://<training run id>/<weights, sampler_weights or external_weights>/<name>."
            )
        run_id, segment, name = parts
        check_part(run_id, "training run id")
        check_part(name, "checkpoint name")
        return cls(
            tinker_path=tinker_path,
            training_run_id=run_id,
            checkpoint_type=SEGMENTS[segment],
            checkpoint_id=f"{segment}/{name}",
        )


def check_part(text: str, what: str) -> None:
    """Check a run id or a name, which become parts of paths.

    Raises:
        TinkerPathError: when it is empty, too long, or has characters that do not belong there.
    """
    if len(text) > MAX_PART_LENGTH or not _PART.fullmatch(text):
        raise TinkerPathError(
            f"The {what} {text[:60]!r} cannot be used: take 1 to {MAX_PART_LENGTH} letters, "
            "digits and any of _ - : + = @ . (no dot at the start, no slash)."
        )


def format_tinker_path(run_id: str, segment: str, name: str) -> str:
    """Put a path together.

    Raises:
        TinkerPathError: when a part does not fit.
    """
    path = f"{SCHEME}{run_id}/{segment}/{name}"
    return ParsedCheckpointTinkerPath.from_tinker_path(path).tinker_path
