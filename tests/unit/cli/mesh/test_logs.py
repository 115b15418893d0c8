"""What a worker's log lines look like."""

import json
import logging

from tinkex.cli.mesh.logs import Lines


def line(form, message, *args, fields=None, exc_info=None):
    record = logging.LogRecord("tinkex.mesh.x", logging.INFO, "f", 1, message, args, exc_info)
    if fields is not None:
        record.fields = fields
    return Lines(form).format(record)


def test_text_is_pairs_and_json_is_an_object_with_the_same():
    fields = {"request_id": "ab", "seconds": 0.5, "first_token_s": None, "outcome": "ok"}
    text = line("text", 'it "ended"\nwell', fields=fields)
    assert text.count("\n") == 0
    assert text.endswith(
        r'event="it \"ended\"\nwell" request_id=ab seconds=0.5 first_token_s=- outcome=ok'
    )
    found = json.loads(line("json", 'it "ended"\nwell', fields=fields))
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "info",
        "logger": "tinkex.mesh.x",
        "event": 'it "ended"\nwell',
        **fields,
    }


def test_keys_are_left_out_in_both_forms_and_in_fields():
    for form in ("text", "json"):
        told = line(form, "a key %s", "tmk-abcdef", fields={"other": "tmk-ghijkl"})
        assert "abcdef" not in told
        assert "ghijkl" not in told


def test_a_value_with_blanks_is_quoted_and_an_exception_is_one_line():
    assert line("text", "x", fields={"why": "two words"}).endswith(' why="two words"')
    told = line("text", "x", exc_info=(ValueError, ValueError("no"), None))
    assert "ValueError: no" in told
    assert "\n" not in told
