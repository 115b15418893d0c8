"""`tinkex sample` and `tinkex chat`: text from a base model or from trained weights.

Owns the options and the prompt's rendering.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tinkex import types
    from tinkex.client.sampling import SamplingClient
    from tinkex.client.service import ServiceClient
    from tinkex.errors import InputError

DEFAULT_MODEL = "tinkex/sprout"

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "--base-model", help=f"Base model of the server; default: {DEFAULT_MODEL}."
    ),
]
ModelPath = Annotated[
    str | None, typer.Option(help="tinker:// path of sampler weights, instead of a base model.")
]
MaxTokens = Annotated[int, typer.Option(help="Tokens of a reply at most.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token each time.")]
TopP = Annotated[float, typer.Option(help="Share of the probability that is sampled from.")]
TopK = Annotated[int, typer.Option(help="Likeliest tokens that are sampled from; -1: all.")]
Seed = Annotated[int | None, typer.Option(help="Makes the reply the same each time.")]
System = Annotated[str | None, typer.Option(help="System message before the conversation.")]
Local = Annotated[
    Path | None, typer.Option(help="Start a server of its own with this data folder.")
]


def sample(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="What to answer; - or nothing reads it from stdin.")
    ] = None,
    model: Model = None,
    model_path: ModelPath = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", help="Replies.")] = 1,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = -1,
    seed: Seed = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End a reply here, too; several times for several.")
    ] = None,
    system: System = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text itself, without a chat template.")
    ] = False,
    local: Local = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the replies with their tokens as JSON.")
    ] = False,
) -> None:
    """Sample replies to one prompt and print them."""
    from tinkex import types
    from tinkex.cli.connect import invocation, service_client

    text = _piped() if prompt is None or prompt == "-" else _checked(prompt)
    params = _params(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=stop or None,
    )
    with service_client(context, local) as service:
        sampler = _sampler(service, model, model_path)
        tokenizer = sampler.get_tokenizer()
        ends = _ends(stop or [], tokenizer, chats=not raw)
        params = params.model_copy(update={"stop": ends})
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        tokens = tokenizer.encode(text) if raw else _rendered(messages, tokenizer)
        response = sampler.sample(types.ModelInput.from_ints(tokens), num_samples, params).result()
    replies = [_decoded(sequence.tokens, tokenizer) for sequence in response.sequences]
    if json_output or invocation(context).form == "json":
        print(json.dumps(_as_json(response, replies), indent=2))
    else:
        print("\n---\n".join(replies))


def chat(
    context: typer.Context,
    model: Model = None,
    model_path: ModelPath = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    top_k: TopK = -1,
    seed: Seed = None,
    system: System = None,
    local: Local = None,
) -> None:
    """Talk to a model: /reset forgets the conversation, /exit or Ctrl-D ends."""
    from tinkex.cli.connect import service_client

    params = _params(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    with service_client(context, local) as service:
        conversation = _Conversation(_sampler(service, model, model_path), params, system)
        print("/reset forgets the conversation; /exit or Ctrl-D ends.", file=sys.stderr)
        somebody_types = sys.stdin.isatty()
        while (line := typed_line()) is not None:
            if line == "/exit":
                return
            if line == "/reset":
                conversation.reset()
            elif line:
                conversation.say(line, goes_on=somebody_types)


class _Conversation:
    """The messages so far, and who answers them."""

    def __init__(
        self, sampler: SamplingClient, params: types.SamplingParams, system: str | None
    ) -> None:
        self._sampler = sampler
        self._tokenizer = sampler.get_tokenizer()
        stop = _ends([], self._tokenizer, chats=True)
        self._params = params.model_copy(update={"stop": stop})
        self._system = system
        self._messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._messages = [{"role": "system", "content": self._system}] if self._system else []

    def say(self, text: str, *, goes_on: bool = False) -> None:
        """Answer one message, showing the reply as it comes.

        Ctrl-C ends the reply; what was said of it stays in the conversation. A message that gets no
        whole reply for another reason is forgotten.

        Args:
            text: the message.
            goes_on: whether a lost connection, too, is told and ends nothing.

        Raises:
            TinkerError: there is no reply, or it broke off.
        """
        from tinkex import types
        from tinkex.errors import InputError, RequestFailedError, TinkerError

        self._messages.append({"role": "user", "content": text})
        shown = ""
        tokens: list[int] = []
        whole = ""
        try:
            prompt = types.ModelInput.from_ints(_rendered(self._messages, self._tokenizer))
            with self._sampler.sample_stream(prompt, self._params) as stream:
                for piece in stream:
                    tokens.extend(piece.tokens)
                    whole = _decoded(tokens, self._tokenizer)
                    if not whole.endswith("\ufffd"):  # the rest of a character is still to come
                        print(whole[len(shown) :], end="", flush=True)
                        shown = whole
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        except TinkerError as error:
            if not (goes_on or isinstance(error, InputError | RequestFailedError)):
                raise
            self._messages.pop()
            print("\n" if shown else "", end="", flush=True)
            print(f"Error: {error} /reset forgets the conversation.", file=sys.stderr)
            return
        print(whole[len(shown) :])
        self._messages.append({"role": "assistant", "content": whole})


def typed_line() -> str | None:
    """Read the user's next message; None at the end.

    Raises:
        InputError: it is no text in the terminal's encoding.
    """
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise _no_text(error) from error


def _params(**options: Any) -> types.SamplingParams:
    """Make them of options; a number beyond 64 bits is an InputError."""
    from tinkex import types
    from tinkex.client.operations import checked

    return checked(lambda: types.SamplingParams(**options))


def _piped() -> str:
    """Read a whole prompt from standard input."""
    if sys.stdin.isatty():
        print("Type the prompt; Ctrl-D on a line of its own ends it.", file=sys.stderr)
    try:
        return _checked(sys.stdin.read())
    except UnicodeDecodeError as error:
        raise _no_text(error) from error


def _checked(text: str) -> str:
    """Refuse what the terminal or the pipe gave and is no text: it came as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _no_text(error) from error
    return text


def _no_text(error: UnicodeError) -> InputError:
    from tinkex.errors import InputError

    return InputError(f"This is no text in the encoding of this terminal ({error}). Write UTF-8.")


def _sampler(service: ServiceClient, model: str | None, path: str | None) -> SamplingClient:
    if model is not None and path is not None:
        raise typer.BadParameter("give one of --model and --model-path", param_hint="--model")
    if path is not None:
        return service.create_sampling_client(model_path=path).result()
    return service.create_sampling_client(base_model=model or DEFAULT_MODEL).result()


def _rendered(messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
    from tinkex.errors import InputError
    from tinkex.sft.rendering import templated

    for message in messages:
        _checked(message["content"])
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("The model's tokenizer has no chat template: use `tinkex sample --raw`.")
    return templated(messages, tokenizer, add_generation_prompt=True)


def _ends(stop: list[str], tokenizer: Any, *, chats: bool) -> list[str] | None:
    """Add the model's own ends, in whose place the stops of a request are.

    Args:
        stop: strings that are to end a reply, too.
        tokenizer: the model's.
        chats: whether the prompt is a conversation, whose template may have another end.

    Returns:
        The stops; None where the model's own end is all there is.
    """
    from tinkex.sft.rendering import turn_end

    own = getattr(tokenizer, "eos_token", None)
    of_turn = turn_end(tokenizer) if chats else None
    if not stop and of_turn in {own, None}:
        return None
    return [*stop, *(end for end in dict.fromkeys((of_turn, own)) if end)]


def _decoded(tokens: list[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def _as_json(response: types.SampleResponse, replies: list[str]) -> dict[str, Any]:
    return {
        "replies": [
            {
                "text": text,
                "stop_reason": str(sequence.stop_reason),
                "tokens": sequence.tokens,
                "logprobs": sequence.logprobs,
            }
            for sequence, text in zip(response.sequences, replies, strict=True)
        ]
    }
