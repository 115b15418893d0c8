"""The base models of a server, by name.

Owns names, aliases and what a client is told about a base model. The engines themselves are behind
each model's `jobs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkex.errors import ConfigurationError
from tinkex.server.refusal import bad_request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tinkex.server.models.jobs import EngineJobs


@dataclass(frozen=True, slots=True, eq=False)
class HostedBase:
    """One loaded base model."""

    name: str
    """Its id: what the model list shows."""
    jobs: EngineJobs
    """Runs work on its engine."""
    architecture: str
    """Its transformers class."""
    max_context_length: int
    """Tokens in one sequence."""
    hidden_size: int
    """Width of the model: clients derive a learning rate from it."""
    tokenizer_id: str
    """What a client's AutoTokenizer can load."""
    tokenizer_location: str = ""
    """What this server's can: a folder or a hub id."""
    trust_remote_code: bool = False
    """Whether that may run code of its repository."""


class Bases:
    """All base models.

    Args:
        hosted: the loaded models.
        aliases: further names, each of a loaded model.

    Raises:
        ConfigurationError: for an alias of a model that is not loaded.
    """

    def __init__(self, hosted: Iterable[HostedBase], aliases: Mapping[str, str]) -> None:
        self._by_name = {base.name: base for base in hosted}
        unknown = [
            f"alias {alias!r} stands for {name!r}, which is none of the base models "
            f"({', '.join(self._by_name)})"
            for alias, name in aliases.items()
            if name not in self._by_name
        ]
        if unknown:
            raise ConfigurationError(unknown)
        self._aliases = dict(aliases)

    def __iter__(self) -> Iterator[HostedBase]:
        return iter(self._by_name.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a client may use: ids first, then aliases."""
        return (*self._by_name, *self._aliases)

    def find(self, name: str) -> HostedBase | None:
        """Return the model of this exact name or alias, or None."""
        return self._by_name.get(self._aliases.get(name, name))

    def get(self, name: str) -> HostedBase:
        """Return the model of this exact name or alias.

        Raises:
            Refusal: 400, with the names there are.
        """
        base = self.find(name)
        if base is None:
            raise bad_request(
                f"Base model {name[:200]!r} is not served here. Choose one of: "
                f"{', '.join(self.names)}. (`tinkex serve --base-model` adds others, `--alias` "
                "another name.)"
            )
        return base
