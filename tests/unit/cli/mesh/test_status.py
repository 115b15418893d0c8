"""`tinkex mesh status` and `top`: the table that people see."""

from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tinkex.cli import output
from tinkex.cli.app import app
from tinkex.cli.mesh import status
from tinkex.cli.mesh.status import COLUMNS, _table
from tinkex.errors import APIConnectionError, ConfigurationError, InputError

PROCESSOR = {
    "role": "processor",
    "peer_id": "b3a7c5046bda3b4b8f38" * 3 + "abcd",
    "addresses": ["iroh:127.0.0.1:1"],
    "certified_until": 2e9,
    "rtt_ms": 123.456,
    "error": None,
    "status": {
        "ready": True,
        "detail": "",
        "load": 1.0,
        "models": ["tinkex/sprout"],
        "links": 12,
        "memory_bytes": 1023 * 2**20,
        "uptime_s": 86_400.0 * 100,
        "certified_until": 2e9,
    },
}
SILENT = {**PROCESSOR, "status": None, "error": "the peer b3a7c5046b cannot be reached"}


def drawn(width):
    out = StringIO()
    table = _table([PROCESSOR, SILENT], width)
    Console(file=out, width=width, highlight=False).print(output.drawn(table))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 200])
def test_state_and_models_can_be_read_however_narrow_the_terminal_is(width):
    text = drawn(width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("processor", "b3a7c5046b", "ready", "tinkex/sprout", "123.5 ms"):
        assert word in text
    assert "no answer" in text.replace("\n", " ")


def test_what_does_not_fit_is_named_and_shown_where_it_does():
    assert "a wider terminal shows memory, links, up, certified" in drawn(100)
    wide = drawn(130)
    assert "wider" not in wide
    assert "1023.0 MB" in wide
    assert all(column in wide for column in COLUMNS)


def top(tmp_path, every):
    asked = ["mesh", "top", "--every", every, "--data-dir", str(tmp_path)]
    return CliRunner().invoke(app, asked).exception


@pytest.mark.parametrize("every", ["nan", "inf", "-1", "0", "0.001", "1e300"])
def test_pause_that_is_no_sensible_number_of_seconds_is_refused_by_name(tmp_path, every):
    refused = top(tmp_path, every)
    assert isinstance(refused, InputError)
    assert "--every" in str(refused)


@pytest.mark.parametrize("every", ["0.1", "86400"])
def test_pause_of_a_tenth_of_a_second_to_a_day_is_taken(tmp_path, every):
    assert isinstance(top(tmp_path, every), ConfigurationError), "no worker runs there"


def test_top_goes_on_while_the_worker_that_it_asks_starts_anew(tmp_path, monkeypatch, capsys):
    away = APIConnectionError("nobody listens [Errno 111]")
    looks = iter([[PROCESSOR], away, [SILENT], KeyboardInterrupt()])

    def look(*_):
        found = next(looks)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(status, "_survey", look)
    with pytest.raises(KeyboardInterrupt):
        status.top(every=0.1, data_dir=tmp_path)
    assert next(looks, None) is None
    assert "no answer" in capsys.readouterr().out, "what was seen after it"
