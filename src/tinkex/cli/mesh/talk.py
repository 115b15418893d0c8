"""`tinkex mesh chat`: a conversation with a model of the network, token by token."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkex.cli.mesh.endpoint import Endpoint, Url, answer_of, find_caller
from tinkex.cli.mesh.places import DataDir
from tinkex.cli.sampling import typed_line
from tinkex.errors import APIConnectionError, APIStatusError, TinkerError, status_error

if TYPE_CHECKING:
    import httpx

MAX_TOKENS = 512
"""Of a reply, unless somebody says how many."""


def chat(
    model: Annotated[str, typer.Argument(help="A base model, or an adapter's name.")],
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Say this, print the reply, and end.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"Tokens of a reply; default: {MAX_TOKENS}, or fewer where the context has no "
            "more left.",
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.7,
    seed: Annotated[int | None, typer.Option(help="For the same reply again.")] = None,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Talk to a model: /reset forgets the conversation, /exit or Ctrl-D ends."""
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    talk = _Talk(find_caller(url, data_dir), model, system, options)
    if message is not None:
        talk.say(message)
        return
    print("/reset forgets the conversation; /exit or Ctrl-D ends.", file=sys.stderr)
    somebody_types = sys.stdin.isatty()
    while (line := typed_line()) is not None and line != "/exit":
        if line == "/reset":
            talk.reset()
        elif line:
            talk.say(line, goes_on=somebody_types)


class _Talk:
    """The messages so far, and who answers them."""

    def __init__(
        self, endpoint: Endpoint, model: str, system: str | None, options: dict[str, Any]
    ) -> None:
        self._endpoint, self._model, self._options = endpoint, model, options
        self._first = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    def reset(self) -> None:
        self._messages = list(self._first)

    def say(self, text: str, *, goes_on: bool = False) -> None:
        """Say something and print the reply; both stay in the conversation.

        Args:
            text: what is said.
            goes_on: whether an error is told and ends nothing, and Ctrl-C ends the reply alone.

        Raises:
            TinkerError: there is no reply, or it broke off.
        """
        asked = [*self._messages, {"role": "user", "content": text}]
        reply = ""
        try:
            for piece in self._replied(asked):
                reply += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if not goes_on:
                raise
            print(" [stopped]", end="")
        except TinkerError as error:
            if not goes_on:
                raise
            print("\n" if reply else "", end="", flush=True)
            print(f"Error: {error} Try again, or /reset or /exit.", file=sys.stderr)
            return
        print()
        self._messages = [*asked, {"role": "assistant", "content": reply}]

    def _replied(self, messages: list[dict[str, str]]) -> Iterator[str]:
        options = {name: value for name, value in self._options.items() if value is not None}
        body = {"model": self._model, "messages": messages, "stream": True, **options}
        if self._options["max_tokens"] is not None:
            yield from self._answered(body)
            return
        try:
            yield from self._answered(body | {"max_tokens": MAX_TOKENS})
        except APIStatusError as error:
            from tinkex.openai_api.refusal import is_context_length_exceeded

            if not is_context_length_exceeded(error):
                raise
            yield from self._answered(body)  # with what the context has left

    def _answered(self, body: dict[str, Any]) -> Iterator[str]:
        import httpx

        endpoint, credential = self._endpoint, self._endpoint.credential()
        try:
            with endpoint.http() as client:
                asked = endpoint.request(
                    client, "POST", "/v1/chat/completions", credential=credential, json=body
                )
                with closing(client.send(asked, stream=True)) as reply:
                    yield from _contents(reply)
        except httpx.HTTPError as error:
            raise APIConnectionError(
                f"The connection to {self._endpoint.url} ended ({error}): ask again."
            ) from error


def _contents(reply: httpx.Response) -> Iterator[str]:
    if not reply.is_success:
        reply.read()
        answer_of(reply)
    for line in reply.iter_lines():
        kind, _, data = line.partition(": ")
        if kind != "data" or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise status_error(500, event["error"]["message"])
        for choice in event["choices"]:
            yield choice["delta"].get("content") or ""
