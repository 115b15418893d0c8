"""Receipts on disk: what a user holds against a gateway's books, after a restart too.

Owns the file: one JSON object a line, bytes in hexadecimal, so that any program can read and check
it. It is bounded: a full file becomes the older one, and the oldest goes. No prompt and no text is
in a receipt.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import orjson

from tinkex.mesh.identity import PeerId
from tinkex.mesh.trust.receipts import ReceiptBody

_LOG = logging.getLogger("tinkex.mesh.client")
FULL_BYTES = 16 * 2**20
"""About 20,000 receipts."""
FILES = 4


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A receipt with both signatures."""

    gateway: PeerId
    body: bytes
    """A `ReceiptBody` in msgpack."""
    signature: bytes
    """The gateway's."""
    countersignature: bytes
    """The client's."""

    def as_json(self) -> dict[str, str]:
        """Return what a line holds."""
        return {
            "gateway": str(self.gateway),
            "body": self.body.hex(),
            "signature": self.signature.hex(),
            "countersignature": self.countersignature.hex(),
        }

    @staticmethod
    def of_json(content: Mapping[str, str]) -> SignedReceipt:
        """Read what a line holds.

        Raises:
            KeyError, TypeError, ValueError, InputError: it is none.
        """
        body, signature, countersignature = (
            bytes.fromhex(content[name]) for name in ("body", "signature", "countersignature")
        )
        return SignedReceipt(PeerId.parse(content["gateway"]), body, signature, countersignature)


class ReceiptBook:
    """The receipts of a client worker.

    Args:
        path: of the file; the older ones stand beside it as `.1`, `.2`, ...
        client: who countersigns them.
        full_bytes: a file so long is full.
        files: how many are kept.
    """

    def __init__(
        self, path: Path, client: PeerId, *, full_bytes: int = FULL_BYTES, files: int = FILES
    ) -> None:
        self.client = client
        """Who countersigns them."""
        self._path = path
        self._full_bytes = full_bytes
        self._files = files

    def add(self, receipt: SignedReceipt) -> None:
        """Write one down. Where that fails, the log says so: the request itself is answered."""
        line = orjson.dumps(receipt.as_json()) + b"\n"
        try:
            self._make_room()
            _append(self._path, line)
        except OSError as error:
            _LOG.error("a receipt could not be kept: %s", error.strerror)

    def of_account(self, account_id: str, *, since: float = 0.0) -> list[SignedReceipt]:
        """Return those of an account, oldest first; lines that are none are passed over.

        Args:
            account_id: whose.
            since: Unix seconds; what was made before is left out.
        """
        found = []
        for receipt in self._all():
            try:
                body = msgspec.msgpack.decode(receipt.body, type=ReceiptBody)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            if body.account_id == account_id and body.at >= since:
                found.append(receipt)
        return found

    def _all(self) -> Iterator[SignedReceipt]:
        for index in reversed(range(self._files)):
            try:
                lines = self._file(index).read_bytes().splitlines()
            except FileNotFoundError:
                continue
            for line in lines:
                try:
                    yield SignedReceipt.of_json(orjson.loads(line))
                except (KeyError, TypeError, ValueError):
                    continue

    def _make_room(self) -> None:
        try:
            if self._path.stat().st_size < self._full_bytes:
                return
        except FileNotFoundError:
            return
        for index in reversed(range(self._files - 1)):
            if self._file(index).exists():
                self._file(index).replace(self._file(index + 1))

    def _file(self, index: int) -> Path:
        return self._path if index == 0 else self._path.with_name(f"{self._path.name}.{index}")


def _append(path: Path, line: bytes) -> None:
    """Add a line in one write, which leaves it there whole, or cut at its end.

    Raises:
        OSError: the disk refuses, or has no room for all of it: then nothing of it stays.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # a crash cut the last one short: it takes no other along
        if os.write(descriptor, line) < len(line):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)
