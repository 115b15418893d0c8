"""The recorded traffic of the official SDK, exchange by exchange."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

FOLDER = Path(__file__).parent / "fixtures" / "wire"


@dataclass(frozen=True)
class Exchange:
    """One request and its answer."""

    case: str
    number: int
    request: dict[str, Any]
    response: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.case}-{self.number}"

    @property
    def protobuf_request(self) -> bytes | None:
        """The request's protobuf bytes, decompressed."""
        if "protobuf" not in self.request.get("body_kind", ""):
            return None
        raw = base64.b64decode(self.request["body_raw_base64"])
        if raw.startswith(b"\x28\xb5\x2f\xfd"):
            raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
        return raw

    @property
    def protobuf_response(self) -> bytes | None:
        if "protobuf" not in self.response.get("body_kind", ""):
            return None
        return base64.b64decode(self.response["body_raw_base64"])


@cache
def load(case: str) -> dict[str, Any]:
    """Read one recording."""
    return json.loads((FOLDER / f"{case}.json").read_bytes())


@cache
def exchanges() -> tuple[Exchange, ...]:
    """Every recorded exchange."""
    found = []
    for path in sorted(FOLDER.rglob("*.json")):
        case = path.relative_to(FOLDER).with_suffix("").as_posix()
        for number, exchange in enumerate(json.loads(path.read_bytes()).get("exchanges", [])):
            found.append(Exchange(case, number, exchange["request"], exchange["response"]))
    return tuple(found)
