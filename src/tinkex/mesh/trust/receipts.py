"""Receipts: what a gateway says it counted, and that the client agrees.

    gateway  --signs-->       ReceiptBody    counts, and a digest of every token that was sent
    client   --countersigns--> the same bytes, after it checked them against what it saw

Owns the form, the signatures and the checks. Keeps nothing: gateways write both into their usage
feed, clients keep their receipts. A user checks one with `verify_receipt`, knowing the gateway's id
alone, and finds `request_id` in the usage report.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence

import msgspec

from tinkex.errors import TrustError
from tinkex.mesh.identity import KeyPair, PeerId

RECEIPT = "receipt"
COUNTERSIGNATURE = "receipt-countersignature"


class ReceiptBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is counted for one request."""

    request_id: str
    gateway: bytes
    """Its peer id."""
    client: bytes
    """The peer id of the worker that asked, and that may countersign."""
    account_id: str
    key_id: str
    model: str
    """As the caller named it."""
    prompt_tokens: int
    completion_tokens: int
    """Of all completions together, those that end one included."""
    cached_tokens: int
    """Those of the prompt that were not computed anew; they are charged all the same."""
    output: bytes
    """The `OutputDigest` of all that was sent."""
    reproducible: bool
    """Whether the same seed would give the same tokens again."""
    seed: int
    """Given, or drawn. A foreign server may have drawn another: `reproducible` is false there."""
    at: float
    """Unix seconds."""
    epoch: bytes
    sequence: int
    """Where the gateway's usage feed has the reservation that this settles."""


class OutputDigest:
    """A digest of a stream's tokens and texts, however they were cut into pieces.

    It is SHA-256 over, of each completion in turn, the SHA-256 of its token ids (8 bytes each,
    little-endian, two's complement) and the SHA-256 of its text in UTF-8. Echoed prompts are left
    out: nobody is charged for them twice.

    Args:
        completions: how many the request asked for.
    """

    def __init__(self, completions: int) -> None:
        self._parts = [(hashlib.sha256(), hashlib.sha256()) for _ in range(completions)]
        self.tokens = 0

    def add(self, index: int, tokens: Sequence[int], text: str) -> None:
        """Add what came of one completion."""
        ids, texts = self._parts[index]
        ids.update(struct.pack(f"<{len(tokens)}q", *tokens))
        texts.update(text.encode())
        self.tokens += len(tokens)

    def digest(self) -> bytes:
        """Return the 32 bytes; more may be added after."""
        whole = hashlib.sha256()
        for ids, texts in self._parts:
            whole.update(ids.digest() + texts.digest())
        return whole.digest()


def sign_receipt(gateway: KeyPair, body: ReceiptBody) -> tuple[bytes, bytes]:
    """Write and sign a receipt: its bytes and the signature."""
    encoded = msgspec.msgpack.encode(body)
    return encoded, gateway.sign(RECEIPT, encoded)


def verify_receipt(body: bytes, signature: bytes, *, gateway: PeerId) -> ReceiptBody:
    """Read a receipt that a gateway signed.

    Raises:
        TrustError: it did not, or the receipt names another.
    """
    if not gateway.signed(RECEIPT, body, signature):
        raise TrustError(
            f"the receipt was not signed by gateway {gateway.short}: do not accept it, and compare "
            "the gateway's id with the one that your client was connected to"
        )
    try:
        receipt = msgspec.msgpack.decode(body, type=ReceiptBody)
    except ValueError as error:
        raise TrustError(f"the receipt cannot be read ({error})") from error
    if receipt.gateway != gateway.raw:
        raise TrustError("the receipt names another gateway than the one that signed it")
    return receipt


def check_receipt(
    receipt: ReceiptBody, *, client: PeerId, request_id: str, prompt_tokens: int, seen: OutputDigest
) -> None:
    """Compare a receipt with what the client saw.

    Raises:
        TrustError: it says something else; it is not to be countersigned.
    """
    wrong = [
        name
        for name, right in (
            ("client", receipt.client == client.raw),
            ("request_id", receipt.request_id == request_id),
            ("prompt_tokens", receipt.prompt_tokens == prompt_tokens),
            ("completion_tokens", receipt.completion_tokens == seen.tokens),
            ("output", hmac.compare_digest(receipt.output, seen.digest())),
        )
        if not right
    ]
    if wrong:
        raise TrustError(
            f"the gateway's receipt does not fit what came of the request: {', '.join(wrong)}"
        )


def countersign(client: KeyPair, body: bytes) -> bytes:
    """Sign a receipt's bytes as the client that agrees with them."""
    return client.sign(COUNTERSIGNATURE, body)


def is_countersigned(body: bytes, signature: bytes, *, client: PeerId) -> bool:
    """Whether a client agreed with a receipt."""
    return client.signed(COUNTERSIGNATURE, body, signature)
