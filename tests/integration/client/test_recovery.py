"""A run that is lost goes on from its latest checkpoint, to the figures of one that was not."""

import pytest
from client_support import batch
from server_support import BASE_MODEL, KEY

import tinkex as tinker
from tinkex.client.recovery import is_recoverable
from tinkex.errors import ConfigurationError, InputError

STEPS = 6


@pytest.fixture
def connect(server, runtime):
    return lambda: tinker.ServiceClient(base_url=server.url, api_key=KEY, runtime=runtime)


def start(service):
    return service.create_lora_training_client(BASE_MODEL, rank=4, seed=1).result(30)


class Run:
    """Trains, saving after each second step; fails where it is told."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.begins = []
        self.losses = {}

    def __call__(self, training, checkpoint):
        self.begins.append(checkpoint)
        first = 0 if checkpoint is None else int(checkpoint.rpartition("-")[2])
        for step in range(first, STEPS):
            if self.failures and self.failures[0][0] == step:
                raise self.failures.pop(0)[1]
            loss = training.forward_backward(batch(2), "cross_entropy")
            training.optim_step(tinker.AdamParams(learning_rate=1e-2)).result(30)
            self.losses[step] = loss.result(30).metrics["loss:sum"]
            if step % 2:
                training.save_state(f"step-{step + 1}").result(30)
        return "done"


def lost():
    return tinker.APIConnectionError("the server is gone")


def test_run_goes_on_from_its_latest_checkpoint_to_the_same_figures(connect):
    whole, broken, heard = Run(), Run((3, lost()), (5, lost())), []
    assert tinker.run_with_recovery(connect, start, whole) == "done"
    assert tinker.run_with_recovery(connect, start, broken, on_recovery=heard.append) == "done"
    assert broken.losses == whole.losses
    assert [b and b.rpartition("/")[2] for b in broken.begins] == [None, "step-2", "step-4"]
    assert [one.attempt for one in heard] == [1, 1]  # a new checkpoint starts the count anew


def test_run_without_a_checkpoint_begins_again(connect):
    run = Run((1, lost()))
    assert tinker.run_with_recovery(connect, start, run) == "done"
    assert run.begins == [None, None]


def test_attempts_are_bounded_and_the_last_error_is_raised(connect):
    run = Run(*[(0, lost()) for _ in range(9)])
    policy = tinker.RecoveryPolicy(max_attempts=2)
    with pytest.raises(tinker.APIConnectionError):
        tinker.run_with_recovery(connect, start, run, policy=policy)
    assert len(run.begins) == 3


@pytest.mark.parametrize("error", [InputError("wrong"), ValueError("a bug")])
def test_mistake_of_the_caller_is_not_repeated(connect, error):
    run = Run((0, error))
    with pytest.raises(type(error)):
        tinker.run_with_recovery(connect, start, run)
    assert len(run.begins) == 1


def test_what_can_be_recovered_from():
    good = [
        lost(),
        tinker.InternalServerError("x", status_code=503),
        tinker.NotFoundError("gone", status_code=404),
        tinker.RequestFailedError("x", category="server"),
    ]
    bad = [
        tinker.AuthenticationError("x", status_code=401),
        tinker.RequestFailedError("x", category="user"),
        InputError("x"),
    ]
    assert [is_recoverable(one) for one in good + bad] == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"initial_delay": -1}, {"max_delay": 0.5}])
def test_policy_that_cannot_work_is_refused(wrong):
    with pytest.raises(ConfigurationError):
        tinker.RecoveryPolicy(**wrong)
