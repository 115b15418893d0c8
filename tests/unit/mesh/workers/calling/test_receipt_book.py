"""Receipts on disk: found again, bounded, and what is no receipt is passed over."""

import os
import stat

import pytest
from mesh_trust import receipt_body

from tinkex.mesh.identity import KeyPair
from tinkex.mesh.trust.receipts import countersign, sign_receipt
from tinkex.mesh.workers.calling.receipt_book import ReceiptBook, SignedReceipt

GATEWAY, CLIENT = (KeyPair(bytes([one]) * 32) for one in (1, 2))


def receipt(number, account_id="acc-1"):
    body = receipt_body(
        GATEWAY, CLIENT, request_id=f"request-{number}", account_id=account_id, at=float(number)
    )
    encoded, signature = sign_receipt(GATEWAY, body)
    return SignedReceipt(GATEWAY.peer_id, encoded, signature, countersign(CLIENT, encoded))


@pytest.fixture
def book(tmp_path):
    return ReceiptBook(tmp_path / "receipts.jsonl", CLIENT.peer_id)


def test_receipts_are_found_again_after_a_restart_by_their_account_alone(book, tmp_path):
    for number, account in enumerate(("acc-1", "acc-2", "acc-1")):
        book.add(receipt(number, account))
    again = ReceiptBook(tmp_path / "receipts.jsonl", CLIENT.peer_id)
    assert again.of_account("acc-1") == [receipt(0), receipt(2)]
    assert again.of_account("acc-1", since=1.0) == [receipt(2)]
    assert again.of_account("acc-3") == []
    assert stat.S_IMODE((tmp_path / "receipts.jsonl").stat().st_mode) == 0o600


def test_line_that_is_no_receipt_is_passed_over(book, tmp_path):
    book.add(receipt(1))
    cut = (tmp_path / "receipts.jsonl").read_bytes()[:-9]
    with (tmp_path / "receipts.jsonl").open("ab") as file:
        for line in (b"{}", b"[]", b"null", b'{"gateway": "x"}', b"\xff\xfe", cut):
            file.write(line + b"\n")
    book.add(receipt(2))
    assert book.of_account("acc-1") == [receipt(1), receipt(2)]


@pytest.mark.parametrize("left", [-1, -9, 1])
def test_receipt_after_a_line_that_a_crash_cut_short_is_kept(book, tmp_path, left):
    path = tmp_path / "receipts.jsonl"
    book.add(receipt(1))
    whole = path.stat().st_size
    book.add(receipt(2))
    with path.open("r+b") as file:
        file.truncate(whole + left if left > 0 else path.stat().st_size + left)
    book.add(receipt(3))
    book.add(receipt(4))
    cut = [] if left != -1 else [receipt(2)]  # all of it but the end of its line
    assert book.of_account("acc-1") == [receipt(1), *cut, receipt(3), receipt(4)]


def test_receipt_that_a_full_disk_took_half_of_is_taken_back_and_logged(
    book, tmp_path, monkeypatch, caplog
):
    book.add(receipt(1))
    before = (tmp_path / "receipts.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        write = os.write
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:100]))
        book.add(receipt(2))
    assert "could not be kept" in caplog.text
    assert (tmp_path / "receipts.jsonl").read_bytes() == before
    book.add(receipt(3))
    assert book.of_account("acc-1") == [receipt(1), receipt(3)]


def test_files_are_bounded_and_the_oldest_receipts_go_first(tmp_path):
    length = len(receipt(10).as_json()["body"]) * 2
    book = ReceiptBook(tmp_path / "receipts.jsonl", CLIENT.peer_id, full_bytes=3 * length, files=3)
    for number in range(100, 160):
        book.add(receipt(number))
    kept = book.of_account("acc-1")
    assert 6 <= len(kept) < 20
    assert kept == [receipt(number) for number in range(160 - len(kept), 160)]
    assert len(list(tmp_path.iterdir())) == 3


def test_full_disk_is_logged_and_stops_nothing(tmp_path, caplog):
    book = ReceiptBook(tmp_path / "nowhere" / "receipts.jsonl", CLIENT.peer_id)
    book.add(receipt(1))
    assert "could not be kept" in caplog.text
    assert book.of_account("acc-1") == []
