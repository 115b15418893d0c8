"""Two users of one server: what the one has, what the other tries, and how answers are compared."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

from server_support import BASE_MODEL, batch_json, sample_json
from sqlalchemy import event

HEX = set("0123456789abcdef")
OF_ITS_OWN = re.compile(r'"(request_id|created|id)":\s*("[^"]*"|\d+)')
"""What two equal requests of one user differ in."""


@dataclass(frozen=True)
class Belongings:
    """Ids of everything that one user has."""

    key: str
    account_id: str
    key_id: str
    session: str
    model: str
    sampler: str
    future: str
    loss: str
    sequence: str
    token_id: str
    weights: str
    """Paths of checkpoints, one of each kind."""
    sampler_weights: str
    external_weights: str
    file: str
    """Below /downloads/, without a signature."""

    def never_was(self) -> Belongings:
        """Return ids of the same form that nobody ever had."""
        changed = {f.name: _another(getattr(self, f.name)) for f in fields(self)}
        session = _another(self.session)
        for name in ("model", "sampler", "loss", "weights", "sampler_weights", "external_weights"):
            changed[name] = getattr(self, name).replace(self.session, session)
        changed["file"] = self.file.replace(self.session, session)
        return replace(self, **{**changed, "session": session, "key": self.key})

    def hidden_in(self, text: str) -> str:
        """Write a text without these ids, so that only what is said about them is left."""
        for name in sorted(
            (f.name for f in fields(self)), key=lambda name: -len(getattr(self, name))
        ):
            text = text.replace(getattr(self, name), f"<{name}>")
        return text

    def named_in(self, text: str) -> list[str]:
        """List which of these ids a text has."""
        return [f.name for f in fields(self) if getattr(self, f.name) in text]


def _another(text: str) -> str:
    """Change the last hexadecimal digit of an id: its form and its length stay."""
    for index in range(len(text) - 1, -1, -1):
        if text[index] in HEX:
            return text[:index] + ("0" if text[index] != "0" else "1") + text[index + 1 :]
    raise AssertionError(f"{text!r} has no digit to change")


def reply_of(response, theirs: Belongings) -> tuple[object, ...]:
    """Return all of an answer that may tell something, the ids taken out."""
    headers = {
        name: theirs.hidden_in(value)
        for name, value in response.headers.items()
        if name not in {"x-request-id", "content-length"}
    }
    text = OF_ITS_OWN.sub(r'"\1": "..."', theirs.hidden_in(response.text))
    return response.status_code, headers, text


async def belongings(api, key: str) -> Belongings:
    """Give a user one of everything."""
    me = (await api.get("/keys", key=key)).json()["keys"][0]
    session = await api.session(key=key)
    model = await api.model(session, key=key)
    saved = {}
    for number, call in enumerate(
        ("save_weights", "save_weights_for_sampler", "save_weights_external"), start=1
    ):
        body = {"model_id": model, "seq_id": number, "path": "saved"}
        saved[call] = (await api.result(await api.ok(f"/{call}", body, key=key), key=key))["path"]
    checkpoint = f"/training_runs/{model}/checkpoints/external_weights/saved"
    urls = (await api.get(f"{checkpoint}/external_weights_urls", key=key)).json()["urls"]
    file = urls["adapter_config.json"].partition("/downloads/")[2].partition("?")[0]
    tokens = f"/training_runs/{model}/checkpoints/weights/saved/access_tokens"
    token_id = (await api.ok(tokens, {}, key=key))["token_id"]
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": BASE_MODEL}
    sampler = (await api.ok("/create_sampling_session", body, key=key))["sampling_session_id"]
    sample = {**sample_json(sampler), "record_stability_info": True}
    sampled = await api.ok("/asample", sample, key=key)
    await api.result(sampled, key=key)
    loss = await api.result(
        await api.ok("/create_custom_loss", loss_json(session), key=key), key=key
    )
    return Belongings(
        key=key,
        account_id=me["account_id"],
        key_id=me["key_id"],
        session=session,
        model=model,
        sampler=sampler,
        future=sampled["request_id"],
        loss=loss["loss_id"],
        sequence=sampled["sample_sequence_ids"][0],
        token_id=token_id,
        weights=saved["save_weights"],
        sampler_weights=saved["save_weights_for_sampler"],
        external_weights=saved["save_weights_external"],
        file=file,
    )


def loss_json(session: str, number: int = 0) -> dict[str, object]:
    """A custom loss: the sum of the logprobs."""
    given = {"args": [], "kwargs": {}}
    output = {"tuple": [{"ref": "x"}, {"dict": {}}]}
    nodes = [
        {"op": "placeholder", "name": "logprobs", "target": "logprobs", **given},
        {"op": "call_method", "name": "x", "target": "sum", "args": [{"ref": "logprobs"}]},
        {"op": "output", "name": "output", "target": "output", "args": [output]},
    ]
    return {
        "session_id": session,
        "custom_loss_seq_id": number,
        "name": "x",
        "inputs": [{"name": "logprobs", "rank": 1}],
        "graph": {"format": 1, "nodes": nodes},
    }


def forward_json(model: str, seq_id: int) -> dict[str, object]:
    """A batch for the `/forward` of old SDKs."""
    body = batch_json(model, seq_id)
    body["forward_input"] = body.pop("forward_backward_input")
    return body


def batch_with(model: str, seq_id: int, **changes: object) -> dict[str, object]:
    """A batch with another loss."""
    body = batch_json(model, seq_id)
    body["forward_backward_input"].update(changes)
    return body


def batched_polls(sampler: str, *retrieved: str) -> dict[str, object]:
    """Ask which samples are done, saying which are fetched."""
    target = {"type": "sampling_session", "sampling_session_id": sampler}
    return {
        "target": target,
        "prev_cursor": 0,
        "timeout": 0.0,
        "retrieved_request_ids": list(retrieved),
    }


class Queries:
    """Notes which queries the database answers, as a measure of work that no clock disturbs."""

    def __init__(self, engine) -> None:
        self.texts: list[str] = []
        event.listen(engine.sync_engine, "before_cursor_execute", self._note)

    def _note(self, _connection, _cursor, statement, *_):
        # what was used is written down a second later, whoever asks just then
        if statement.startswith("SELECT") and "FROM requests" not in statement:
            self.texts.append(statement)

    def taken(self) -> list[str]:
        """Return what was asked since the last call."""
        texts, self.texts = self.texts, []
        return texts
