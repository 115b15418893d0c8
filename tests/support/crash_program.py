"""One user's program for the kill test, written for the official SDK: trains, saves, samples.

It goes in rounds, as many as it is told or until it is told to end. All that it is given is noted
exactly, with ids taken out, so that two runs of the same program can be compared.
"""

from __future__ import annotations

import random
import re
import threading

import numpy as np

BASE_MODEL = "tinkex/sprout"
WAIT_S = 600.0
EACH_KIND = 3
"""Rounds in which everything is done once."""
CHUNK_DATUMS = 2
"""Of the server's `fwdbwd_max_chunk_len`, so that a batch of five is three requests."""


class Program:
    """What one user does.

    Args:
        sdk: the official package.
        login: of the server.
        number: tells the users apart; it is also their seed.
    """

    def __init__(self, sdk, login, number):
        self._sdk = sdk
        self._login = login
        self._number = number
        self._order = random.Random(number)
        self._dimuon = bool(number % 2)
        self.model_id = ""
        self.rounds = 0
        """Rounds done."""
        self.begun = threading.Event()
        """Set once there is a session, a training run and a sampler."""
        self.notes = []
        """What was given: (what was asked, the answer)."""
        self.sessions = 0
        """Sessions of the user, at the end."""
        self.unseeded = []
        """Samples without a seed: their tokens differ from run to run."""
        self.error = None
        """What the program raised; nothing may."""

    def go(self, ended):
        """Run until `ended(rounds)` says so; then save for a last time and look at everything."""
        try:
            with self._sdk.ServiceClient(**self._login) as service:
                self._begin(service)
                self.begun.set()
                while not ended(self.rounds):
                    self._train()
                    (self._save, self._sample, self._go_back)[self.rounds % EACH_KIND]()
                    self.rounds += 1
                self._end(service)
        except BaseException as error:  # noqa: BLE001 - the test tells it
            self.error = error
        finally:
            self.begun.set()

    def _note(self, what, future):
        value = future.result(timeout=WAIT_S) if hasattr(future, "result") else future
        self.notes.append((f"{self.rounds} {what}", plain(value)))
        return value

    def _begin(self, service):
        sdk = self._sdk
        optimizer = {"optimizer": sdk.types.DimuonOptimizerConfig()} if self._dimuon else {}
        self._service = service
        self._client = service.create_lora_training_client(
            BASE_MODEL, rank=8, seed=self._number, user_metadata={"user": "x"}, **optimizer
        ).result(timeout=WAIT_S)
        self.model_id = self._client.model_id
        self._base = service.create_sampling_client(base_model=BASE_MODEL).result(timeout=WAIT_S)
        self._loss = service.create_custom_loss(surprise, {"logprobs": 1, "weights": 1}).result(
            timeout=WAIT_S
        )
        self._state = self._client.save_state("first").result(timeout=WAIT_S).path

    def _batch(self, count=5, length=16):
        rows = [[self._order.randrange(300, 1500) for _ in range(length)] for _ in range(count)]
        return [
            self._sdk.Datum(
                self._sdk.ModelInput.from_ints(row[:-1]),
                {
                    "target_tokens": np.asarray(row[1:], dtype=np.int64),
                    "weights": np.ones(length - 1, dtype=np.float32),
                },
            )
            for row in rows
        ]

    def _step(self):
        if self._dimuon:
            return self._client.optim_step(self._sdk.types.DimuonParams(learning_rate=1e-3))
        return self._client.optim_step(self._sdk.AdamParams(learning_rate=1e-3, weight_decay=0.01))

    def _train(self):
        """Send three steps and a look before the first answer is there."""
        client, futures = self._client, []
        for _ in range(2):
            futures += [client.forward_backward(self._batch(), "cross_entropy"), self._step()]
        futures.append(client.forward(self._batch(3), "cross_entropy"))
        futures += [client.forward_backward_custom(self._batch(3), self._loss), self._step()]
        for number, future in enumerate(futures):
            self._note(f"train {number}", future)

    def _save(self):
        """Save both kinds, a step in between, none waited for; sample from the one by name."""
        client = self._client
        futures = [
            client.save_state(f"state-{self.rounds}"),
            client.save_state("latest", overwrite=True),
            client.forward_backward(self._batch(1), "cross_entropy"),
            self._step(),
            # last: the SDK places this one only when it sends it
            client.save_weights_for_sampler(f"sampler-{self.rounds}"),
        ]
        state, *_, sampler = [self._note(f"save {n}", one) for n, one in enumerate(futures)]
        self._state = state.path
        made = self._service.create_sampling_client(model_path=sampler.path).result(timeout=WAIT_S)
        self._samples(made, "by name")

    def _sample(self):
        """Sample from weights without a name, and from the base model, while training goes on."""
        ahead = [self._client.forward_backward(self._batch(2), "cross_entropy"), self._step()]
        sampler = self._client.save_weights_and_get_sampling_client().result(timeout=WAIT_S)
        self._samples(sampler, "nameless")
        self._samples(self._base, "base")
        for number, future in enumerate(ahead):
            self._note(f"ahead {number}", future)

    def _samples(self, sampler, which):
        sdk = self._sdk
        prompt = sdk.ModelInput.from_ints([self._order.randrange(300, 1500) for _ in range(9)])
        seeded = sdk.SamplingParams(max_tokens=12, seed=self.rounds, temperature=0.8)
        several = sampler.sample(prompt, 3, seeded, include_prompt_logprobs=True)
        free = sampler.sample(prompt, 2, sdk.SamplingParams(max_tokens=6))
        self._note(f"sample {which}", several)
        self.unseeded += free.result(timeout=WAIT_S).sequences

    def _go_back(self):
        """Load the last saved state, with the optimiser's, and go on from there."""
        loaded = self._client.load_state_with_optimizer(self._state)
        after = self._client.forward_backward(self._batch(2), "cross_entropy")
        step = self._step()
        for number, future in enumerate((loaded, after, step)):
            self._note(f"back {number}", future)

    def _end(self, service):
        self._note("last state", self._client.save_state("last"))
        self._note("last sampler", self._client.save_weights_for_sampler("last"))
        rest = service.create_rest_client()
        run = self.model_id
        self._note("run", rest.get_training_run(run))
        self._note("runs", len(rest.list_training_runs().result(timeout=WAIT_S).training_runs))
        self._note("checkpoints", rest.list_checkpoints(run))
        session = rest.get_session(run.partition(":")[0]).result(timeout=WAIT_S)
        # not its samplers: the SDK counts on when it repeats the call that makes one
        self._note("runs of the session", session.training_run_ids)
        self.sessions = len(rest.list_sessions().result(timeout=WAIT_S).sessions)


def surprise(logprobs, weights):
    loss = -(logprobs * weights).sum() + (logprobs * logprobs).sum() * 0.01
    return loss, {"custom/surprise:sum": loss}


def plain(value):
    """A result as plain values, to the last bit, without ids and times."""
    if isinstance(value, str):
        return re.sub(r"sess-[0-9a-f]+", "SESSION", value)
    if isinstance(value, dict):
        items = ((str(key), plain(one)) for key, one in value.items())
        return {key: one for key, one in items if not re.search("time|_at$|seconds", key)}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if hasattr(value, "to_numpy"):
        return plain(value.to_numpy())
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    names = ("loss_fn_outputs", "metrics", "sequences", "prompt_logprobs", "tokens", "logprobs")
    found = {name: plain(getattr(value, name)) for name in names if hasattr(value, name)}
    return found or value
