"""`tinkex mesh receipts`: signatures are checked here, and counts against the usage report."""

import dataclasses
import json
import math

import msgspec
import pytest
from mesh_trust import receipt_body
from typer.testing import CliRunner

from tinkex.cli.app import app
from tinkex.cli.mesh.accounts import whole_report
from tinkex.cli.mesh.endpoint import Endpoint
from tinkex.cli.mesh.receipts import check_receipts, oldest_of
from tinkex.errors import RateLimitError, TrustError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.trust.receipts import countersign, sign_receipt
from tinkex.mesh.workers.calling.receipt_book import SignedReceipt

GATEWAY, CLIENT = (KeyPair(bytes([one]) * 32) for one in (1, 2))
BODY = receipt_body(GATEWAY, CLIENT, key_id="key-1", prompt_tokens=3, completion_tokens=4, at=1.0)
ENTRY = {
    "request_id": "r",
    "gateway": str(GATEWAY.peer_id),
    "model": "m",
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "key_id": "key-1",
}


def held(body=BODY, **changes):
    encoded, signature = sign_receipt(GATEWAY, body)
    made = SignedReceipt(GATEWAY.peer_id, encoded, signature, countersign(CLIENT, encoded))
    return [dataclasses.replace(made, **changes).as_json()]


def check(lines, *entries, since=0.0, now=1000.0):
    checked = check_receipts(lines, str(CLIENT.peer_id), entries, since=since, now=now)
    return [one.verdict for one in checked]


def test_receipt_from_before_what_the_report_lists_is_in_its_sums():
    assert check(held(), since=500.0) == ["summed up"]
    assert check(held()) == ["not in the report"]
    assert oldest_of(held()) == 1.0
    assert oldest_of([]) == math.inf


class Pages:
    """An endpoint that gives at most two entries at a time, of those that were settled by then."""

    def __init__(self, *times):
        self.entries = [{"request_id": f"r{place}", "at": at} for place, at in enumerate(times)]
        self.asked = []

    def ask(self, verb, path, *, credential):
        self.asked.append((verb, path, credential))
        before = float(path.partition("before=")[2] or "inf")
        found = [one for one in self.entries if one["at"] <= before]
        return {
            "entries": found[-2:],
            "listed_since": found[-2]["at"] if len(found) > 2 else 0.0,
        }


def test_pages_of_the_report_are_asked_for_as_far_back_as_is_needed():
    endpoint = Pages(1.0, 2.0, 3.0, 4.0, 4.5)
    report = whole_report(endpoint, "key", since=2.5)
    assert [one["at"] for one in report["entries"]] == [2.0, 3.0, 4.0, 4.5]
    assert report["listed_since"] == 2.0
    report = whole_report(Pages(1.0, 2.0, 3.0, 4.0), "key", since=0.0)
    assert [one["at"] for one in report["entries"]] == [1.0, 2.0, 3.0, 4.0]
    assert report["listed_since"] == 0.0
    endpoint = Pages(1.0, 2.0, 3.0)
    whole_report(endpoint, "key", since=math.inf)
    assert endpoint.asked == [("GET", "/mesh/usage", "key")]
    same = Pages(2.0, 2.0, 2.0)
    assert len(whole_report(same, "key", since=0.0)["entries"]) == 2, "it ends"


def test_pages_beyond_a_minutes_limit_are_waited_for():
    """A gateway takes 60 questions about accounts a minute; 60,000 requests have more pages."""

    class Limited(Pages):
        refused = 0

        def ask(self, verb, path, *, credential):
            if len(self.asked) == 2 and self.refused < 2:
                self.refused += 1
                raise RateLimitError("Too many in a minute.", retry_after_ms=1500 * self.refused)
            return super().ask(verb, path, credential=credential)

    waits = []
    report = whole_report(Limited(1.0, 2.0, 3.0, 4.0, 5.0), "key", since=0.0, wait=waits.append)
    assert [one["at"] for one in report["entries"]] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert waits == [1.5, 3.0]


def test_report_that_is_refused_for_good_is_not_waited_for():
    class Refusing:
        def ask(self, *_, **__):
            raise RateLimitError("More than a minute's limit.")

    with pytest.raises(RateLimitError, match="limit"):
        whole_report(Refusing(), "key", since=0.0, wait=pytest.fail)


def test_receipt_that_the_report_repeats_agrees():
    assert check(held(), ENTRY) == ["agrees"]


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("completion_tokens", 400),
        ("prompt_tokens", 2),
        ("model", "other"),
        ("key_id", "key-2"),
        ("gateway", "00" * 32),
    ],
)
def test_report_that_says_something_else_is_told(field, told):
    (verdict,) = check(held(), ENTRY | {field: told})
    assert verdict == f"{field.replace('_', ' ')}: the report says {told}"


def test_request_that_the_report_left_out_is_told():
    assert check(held(), ENTRY | {"request_id": "another"}) == ["not in the report"]


def test_request_of_this_minute_may_be_on_its_way():
    assert check(held(), now=BODY.at + 59) == ["on its way"]
    assert check(held(), ENTRY | {"prompt_tokens": 7}, now=BODY.at) != ["on its way"]


def test_changed_receipt_or_foreign_signature_is_refused():
    more = msgspec.msgpack.encode(msgspec.structs.replace(BODY, completion_tokens=1))
    changed = {"body": more}, {"signature": b"\0" * 64}, {"countersignature": b"\0" * 64}
    for one in changed:
        with pytest.raises(TrustError):
            check(held(**one), ENTRY)


@pytest.mark.parametrize("reproducible", [True, False])
def test_receipt_says_whether_its_seed_gives_the_same_again(tmp_path, monkeypatch, reproducible):
    kept = held(msgspec.structs.replace(BODY, reproducible=reproducible))
    answers = {
        "/mesh/receipts": {"receipts": kept, "client": str(CLIENT.peer_id)},
        "/mesh/usage": {"entries": [ENTRY], "listed_since": 0.0},
    }
    monkeypatch.setenv("TINKEX_MESH_KEY", "tmk-x")
    monkeypatch.setattr(Endpoint, "ask", lambda self, verb, path, *, credential: answers[path])
    place = ["--url", "http://127.0.0.1:1", "--data-dir", str(tmp_path)]
    shown = CliRunner().invoke(app, ["-f", "json", "mesh", "receipts", *place])
    assert shown.exit_code == 0, shown.output
    (told,) = json.loads(shown.stdout)
    assert (told["verdict"], told["reproducible"]) == ("agrees", reproducible)
