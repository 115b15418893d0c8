"""`tinkex mesh receipts`: what gateways signed for you, checked here, against what they report.

Every signature is checked by this command itself. What the mesh says was used is then compared with
what this machine was given: a gateway that counts more than it sent is found out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from tinkex.cli import output
from tinkex.cli.connect import invocation
from tinkex.cli.extras import require_mesh_extra
from tinkex.cli.mesh.accounts import whole_report
from tinkex.cli.mesh.endpoint import Url, find_caller
from tinkex.cli.mesh.places import DataDir
from tinkex.errors import TrustError

if TYPE_CHECKING:
    from tinkex.mesh.trust.receipts import ReceiptBody
    from tinkex.mesh.workers.calling.receipt_book import SignedReceipt

AGREES = "agrees"
ON_ITS_WAY = "on its way"
"""A gateway's books reach the auth workers, who report, some moments after the receipt."""
TRAVEL_S = 60.0
SUMMED_UP = "summed up"
"""It is so old that its gateway lists it no more: it is in the report's sums by month."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A receipt, and what is said of it."""

    receipt: ReceiptBody
    verdict: str
    """`agrees`, `on its way`, `summed up`, or what is wrong."""


def receipts(context: typer.Context, url: Url = None, data_dir: DataDir = None) -> None:
    """Check the receipts of your account that this machine was given, against the usage report."""
    require_mesh_extra("tinkex mesh receipts")
    from tinkex._clock import SystemClock

    endpoint = find_caller(url, data_dir)
    credential = endpoint.credential()
    held = endpoint.ask("GET", "/mesh/receipts", credential=credential)
    report = whole_report(endpoint, credential, since=oldest_of(held["receipts"]))
    checked = check_receipts(
        held["receipts"],
        held["client"],
        report["entries"],
        since=report["listed_since"],
        now=SystemClock().now(),
    )
    rows = [
        [
            output.moment(one.receipt.at),
            one.receipt.model,
            f"{one.receipt.prompt_tokens:,}",
            f"{one.receipt.completion_tokens:,}",
            one.receipt.gateway.hex()[:10],
            one.verdict,
        ]
        for one in checked
    ]
    value = [
        {
            "request_id": one.receipt.request_id,
            "gateway": one.receipt.gateway.hex(),
            "at": one.receipt.at,
            "model": one.receipt.model,
            "prompt_tokens": one.receipt.prompt_tokens,
            "completion_tokens": one.receipt.completion_tokens,
            "reproducible": one.receipt.reproducible,
            "verdict": one.verdict,
        }
        for one in checked
    ]
    columns = ("When", "Model", "Prompt", "Completion", "Gateway", "Usage report")
    table = output.Table(columns, rows, _title(checked, len(report["entries"])), {"Gateway"})
    output.show(invocation(context).form, value, table)
    if any(one.verdict not in (AGREES, ON_ITS_WAY, SUMMED_UP) for one in checked):
        raise TrustError(
            "a receipt and the usage report differ: show both to whoever runs the network"
        )


def check_receipts(
    held: Iterable[Mapping[str, str]],
    client: str,
    entries: Iterable[Mapping[str, Any]],
    *,
    since: float,
    now: float,
) -> list[Checked]:
    """Check receipts' signatures, and compare them with the entries of a usage report.

    Args:
        held: as the endpoint gives them.
        client: the peer id of the client worker that countersigned them.
        entries: of the usage report.
        since: from when on it lists every request, in Unix seconds; 0: it lists all there were.
        now: Unix seconds of the report.

    Raises:
        TrustError: a signature does not hold: the receipt was changed on this machine.
    """
    from tinkex.mesh.identity import PeerId
    from tinkex.mesh.trust.receipts import is_countersigned

    found = {one["request_id"]: one for one in entries}
    checked = []
    for line in held:
        signed, body = _read(line)
        countersigned = is_countersigned(
            signed.body, signed.countersignature, client=PeerId.parse(client)
        )
        if not countersigned:
            raise TrustError(f"the receipt of {body.request_id} was not countersigned by {client}")
        checked.append(Checked(body, _compare(body, found.get(body.request_id), since, now)))
    return checked


def oldest_of(held: Iterable[Mapping[str, str]]) -> float:
    """Tell when the oldest of these receipts was made, in Unix seconds; infinity where none is."""
    return min((_read(line)[1].at for line in held), default=math.inf)


def _read(line: Mapping[str, str]) -> tuple[SignedReceipt, ReceiptBody]:
    from tinkex.mesh.trust.receipts import verify_receipt
    from tinkex.mesh.workers.calling.receipt_book import SignedReceipt

    signed = SignedReceipt.of_json(line)
    return signed, verify_receipt(signed.body, signed.signature, gateway=signed.gateway)


def _compare(
    receipt: ReceiptBody, entry: Mapping[str, Any] | None, since: float, now: float
) -> str:
    if entry is None and since and receipt.at < since + TRAVEL_S:
        return SUMMED_UP
    if entry is None:
        return ON_ITS_WAY if receipt.at > now - TRAVEL_S else "not in the report"
    wrong = [
        f"{name.replace('_', ' ')}: the report says {entry[name]}"
        for name, right in (
            ("gateway", receipt.gateway.hex()),
            ("model", receipt.model),
            ("prompt_tokens", receipt.prompt_tokens),
            ("completion_tokens", receipt.completion_tokens),
            ("key_id", receipt.key_id),
        )
        if entry[name] != right
    ]
    return "; ".join(wrong) or AGREES


def _title(checked: list[Checked], entries: int) -> str:
    if not checked:
        return "No receipt of this account is held here"
    agreeing = sum(one.verdict == AGREES for one in checked)
    tokens = sum(one.receipt.prompt_tokens + one.receipt.completion_tokens for one in checked)
    return (
        f"{len(checked):,} receipts over {tokens:,} tokens, every signature holds; {agreeing:,} "
        f"agree with the usage report, which has {entries:,} entries"
    )
