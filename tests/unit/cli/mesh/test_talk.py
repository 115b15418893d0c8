"""`tinkex mesh chat`: what an error and Ctrl-C end, at a terminal and in a script; its replies."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tinkex.cli.mesh import talk
from tinkex.cli.mesh.endpoint import Endpoint
from tinkex.errors import APIStatusError, RateLimitError

BUSY = RateLimitError("Every processor is busy: try again later.", status_code=429)


@pytest.fixture
def conversation(tmp_path, monkeypatch):
    """A chat whose replies, and what is typed, a test says: the messages of each request."""
    asked = []
    monkeypatch.setattr(
        talk, "find_caller", lambda *_: Endpoint("http://127.0.0.1:1", "k", tmp_path)
    )

    def run(replies, *lines, typed=True):
        replies, lines = iter(replies), iter([*lines, None])

        def replied(self, messages):
            asked.append([message["content"] for message in messages])
            for piece in next(replies):
                if isinstance(piece, BaseException):
                    raise piece
                yield piece

        monkeypatch.setattr(talk._Talk, "_replied", replied)
        monkeypatch.setattr(talk, "typed_line", lambda: next(lines))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: typed, raising=False)
        talk.chat("sprout")
        return asked

    return run


def test_error_at_a_terminal_is_told_and_the_conversation_goes_on(conversation, capsys):
    asked = conversation([["Hi"], ["Wh", BUSY], ["Fine"]], "hello", "how?", "how are you?")
    assert asked == [["hello"], ["hello", "Hi", "how?"], ["hello", "Hi", "how are you?"]]
    shown = capsys.readouterr()
    assert shown.out == "Hi\nWh\nFine\n"
    assert "Error: Every processor is busy" in shown.err


def test_reply_that_is_stopped_at_a_terminal_stays_as_far_as_it_came(conversation, capsys):
    asked = conversation([["Once", KeyboardInterrupt()], ["!"]], "tell", "go on")
    assert asked[1] == ["tell", "Once", "go on"]
    assert capsys.readouterr().out == "Once [stopped]\n!\n"


@pytest.mark.parametrize("ends", [BUSY, KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_script_ends_with_the_first_error(conversation, ends):
    with pytest.raises(type(ends)):
        conversation([["Wh", ends]], "hello", "again", typed=False)


LEFT = 200
"""Tokens that the context of the model below has left for a reply."""


class SmallContext(BaseHTTPRequestHandler):
    """Answers with how many tokens a reply may have, if there is room for so many."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        tokens = asked.get("max_tokens", LEFT)
        if tokens > LEFT:
            error = {"message": "no room", "code": "context_length_exceeded"}
            self._say(400, json.dumps({"error": error}))
            return
        event = {"choices": [{"delta": {"content": f"{tokens} tokens"}}]}
        self._say(200, f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")

    def _say(self, status, text):
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def small(tmp_path, monkeypatch):
    with HTTPServer(("127.0.0.1", 0), SmallContext) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}", "k", tmp_path)
        monkeypatch.setattr(talk, "find_caller", lambda *_: endpoint)
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("small")
def test_reply_may_have_what_the_context_has_left_unless_more_was_asked_for(capsys):
    talk.chat("sprout", "hello")
    talk.chat("sprout", "hello", max_tokens=7)
    assert capsys.readouterr().out == "200 tokens\n7 tokens\n"
    with pytest.raises(APIStatusError, match="no room"):
        talk.chat("sprout", "hello", max_tokens=201)
