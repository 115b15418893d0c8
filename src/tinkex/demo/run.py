"""`tinkex demo`: the whole product in one command, through its public API alone.

Starts a server, fine-tunes one adapter by examples and one by reward, samples before and after,
and leaves both adapters on disk. Owns the order of events; the loops are in `supervised` and
`reinforcement`, what is printed in `screen`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkex import types
from tinkex._clock import Clock, SystemClock
from tinkex.client.service import ServiceClient
from tinkex.demo import arithmetic, reinforcement, rendering, supervised, translation
from tinkex.demo.reinforcement import ReinforcementSettings, ReinforcementStep
from tinkex.demo.screen import Screen
from tinkex.demo.supervised import SupervisedSettings, SupervisedStep
from tinkex.local import LocalServer

if TYPE_CHECKING:
    from pathlib import Path

    from tinkex.client.training import TrainingClient

BASE_MODEL = "tinkex/sprout"
RANK = 32
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Which parts run, how long, and where their files go."""

    output: Path
    """Folder for the server's data and the two adapters."""
    supervised: SupervisedSettings | None = SupervisedSettings()  # noqa: RUF009 - frozen
    reinforcement: ReinforcementSettings | None = ReinforcementSettings()  # noqa: RUF009 - frozen


def run(
    settings: DemoSettings, *, screen: Screen | None = None, clock: Clock | None = None
) -> None:
    """Run the demo from start to end.

    Raises:
        ServerStartError: when the server does not start.
    """
    screen, clock = screen or Screen(), clock or SystemClock()
    begun = clock.monotonic()
    data_dir = settings.output / "server"
    screen.part("tinkex demo")
    screen.say(f"Starting `tinkex serve` with {BASE_MODEL} on a free loopback port …")
    with LocalServer(data_dir, clock=clock) as server:
        screen.figure("ready after", f"{server.start_seconds:.1f} s")
        screen.figure("URL", server.address.url)
        with ServiceClient(**server.login) as service:
            demo = _Demo(service, data_dir, settings, screen, clock)
            if settings.supervised is not None:
                demo.run_supervised(settings.supervised)
            if settings.reinforcement is not None:
                demo.run_reinforcement(settings.reinforcement)
        screen.part("Done")
        screen.figure("whole demo", f"{clock.monotonic() - begun:.0f} s")
        screen.say(
            "The server has stopped. `tinkex serve` starts one that stays; the README shows the "
            "ten lines that train and sample on it."
        )


class _Demo:
    """The two parts over one service client."""

    def __init__(
        self,
        service: ServiceClient,
        data_dir: Path,
        settings: DemoSettings,
        screen: Screen,
        clock: Clock,
    ) -> None:
        self.service = service
        self.data_dir = data_dir
        self.output = settings.output
        self.screen = screen
        self.clock = clock

    def run_supervised(self, settings: SupervisedSettings) -> None:
        """Teach French, show it, keep it."""
        screen = self.screen
        train_pairs, held_out = translation.load()
        screen.part("1. Supervised fine-tuning: English to French")
        screen.say(
            f"{len(train_pairs)} sentence pairs to learn from, {len(held_out)} kept back. The base "
            "model has never seen French."
        )
        screen.say(f"Creating a LoRA adapter of rank {RANK} on {BASE_MODEL} …")
        client, tokenizer = self._training_client()
        shown = held_out[:: max(len(held_out) // _SHOWN, 1)][:_SHOWN]
        screen.say("Sampling from the base model, before any training …")
        base = self.service.create_sampling_client(base_model=BASE_MODEL).result()
        before = supervised.translate(base, tokenizer, shown)
        screen.say(f"Training: {settings.steps} steps of {settings.batch_size} pairs …")
        with screen.steps("step", settings.steps) as progress:

            def show(step: SupervisedStep) -> None:
                held = f"  held-out {step.held_out_loss:.3f}" if step.held_out_loss else ""
                rate = step.tokens / step.seconds
                progress(step.step, f"loss {step.loss:.3f}  {rate:,.0f} tokens/s{held}")

            result = supervised.train(client, tokenizer, settings, clock=self.clock, on_step=show)
        screen.say("Saving the weights and sampling from them …")
        self._keep(client, "french")
        trained = client.save_weights_and_get_sampling_client().result()
        replies = supervised.translate(trained, tokenizer, held_out)
        right = sum(reply == e.reply for reply, e in zip(replies, held_out, strict=True))
        after = [replies[held_out.index(example)] for example in shown]
        self._show_translations(shown, before, after)
        screen.curve("Training loss, nats per token", [step.loss for step in result.steps])
        screen.figure(
            "held-out loss before and after",
            f"{result.held_out_loss_before:.3f} → {result.held_out_loss_after:.3f}",
        )
        screen.figure("held-out sentences translated exactly", f"{right} of {len(held_out)}")
        screen.figure("trained tokens per second", f"{result.tokens_per_second:,.0f}")

    def run_reinforcement(self, settings: ReinforcementSettings) -> None:
        """Teach by reward, show it, keep it."""
        screen = self.screen
        screen.part("2. Reinforcement learning: small arithmetic")
        example = arithmetic.held_out(1)[0]
        screen.say(
            f'Problems such as "{example.question}"; the reward is 1 when the reply is exactly '
            f'"{example.answer}", else 0. Nobody shows the model an answer.'
        )
        client, tokenizer = self._training_client()
        self._show_replies("Replies of the base model, sampled:", client, tokenizer)
        screen.say(f"Measuring on {settings.held_out} held-out problems, greedy …")
        replies = settings.problems_per_step * settings.group_size
        with screen.steps("step", settings.steps) as progress:

            def show(step: ReinforcementStep) -> None:
                rate = step.sampled_tokens / step.sample_seconds
                progress(
                    step.step,
                    f"mean reward {step.mean_reward:.3f} over {replies} replies  "
                    f"{rate:,.0f} sampled tokens/s",
                )

            result = reinforcement.train(
                client,
                tokenizer,
                settings,
                clock=self.clock,
                on_step=show,
                on_accuracy=lambda share: screen.figure("held-out accuracy", f"{share:.1%}"),
            )
        self._keep(client, "arithmetic")
        self._show_replies("Replies after training, sampled:", client, tokenizer)
        screen.curve("Mean reward", [step.mean_reward for step in result.steps])
        screen.figure(
            "held-out accuracy before and after",
            f"{result.accuracy_before:.1%} → {result.accuracy_after:.1%}",
        )
        screen.figure("sampled tokens per second", f"{result.sampled_tokens_per_second:,.0f}")

    def _training_client(self) -> tuple[TrainingClient, Any]:
        future = self.service.create_lora_training_client(base_model=BASE_MODEL, rank=RANK, seed=0)
        client = future.result()
        return client, client.get_tokenizer()

    def _keep(self, client: TrainingClient, name: str) -> None:
        """Save state and weights on the server, and copy the adapter beside the demo's output."""
        state = client.save_state(name).result().path
        weights = client.save_weights_for_sampler(name).result().path
        run_id, kind, file_name = weights.removeprefix("tinker://").split("/")
        source = self.data_dir / "checkpoints" / run_id / kind / file_name
        target = self.output / "adapters" / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        self.screen.figure("training state", state)
        self.screen.figure("sampler weights", weights)
        self.screen.figure("adapter folder, for PEFT", str(target))

    def _show_translations(
        self, shown: list[translation.Example], before: list[str], after: list[str]
    ) -> None:
        rows = [
            (example.prompt.partition(": ")[2], old, new)
            for example, old, new in zip(shown, before, after, strict=True)
        ]
        self.screen.say("")
        self.screen.table(("held-out sentence", "base model", "fine-tuned"), rows)

    def _show_replies(self, title: str, client: TrainingClient, tokenizer: Any) -> None:
        sampler = client.save_weights_and_get_sampling_client().result()
        problem = arithmetic.held_out(1)[0]
        prompt = types.ModelInput.from_ints(
            rendering.prompt_tokens(arithmetic.messages(problem), tokenizer)
        )
        params = types.SamplingParams(max_tokens=12, temperature=1.0, seed=1)
        sequences = sampler.sample(prompt, 6, params).result().sequences
        replies = [reinforcement.decode(s.tokens, tokenizer).strip() for s in sequences]
        self.screen.say(f'{title} "{problem.question}"')
        self.screen.say("  " + "   ".join(f"[{reply}]" for reply in replies))
