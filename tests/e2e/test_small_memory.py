"""Eight clients at once, with room in the server for two adapters: they get what others get."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from patience import PATIENCE_S

from tinkex.local import LocalServer

CLIENTS = 8


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    arguments = ("--adapter-memory", "9", "--spill-limit", "1000")
    folder = tmp_path_factory.mktemp("small") / "data"
    with LocalServer(folder, arguments, start_timeout=PATIENCE_S) as running:
        yield running


def one_client(sdk, login, number, all_there, look=lambda: None):
    """Train twice, sample in between and after; give all numbers."""
    found = []
    with sdk.ServiceClient(**login) as service:
        training = service.create_lora_training_client(
            "tinkex/sprout", rank=8, seed=number
        ).result()
        all_there.wait()
        tokens = [5, 6, 7, 8, 9 + number]
        datum = sdk.Datum(
            sdk.ModelInput.from_ints(tokens[:-1]),
            {"target_tokens": tokens[1:], "weights": [1.0] * 4},
        )
        for turn in range(2):
            losses = [training.forward_backward([datum], "cross_entropy") for _ in range(2)]
            training.optim_step(sdk.AdamParams(learning_rate=0.01)).result()
            found += [loss.result().metrics["loss:sum"] for loss in losses]
            sampler = training.save_weights_and_get_sampling_client()
            params = sdk.SamplingParams(max_tokens=5, seed=turn)
            reply = sampler.sample(sdk.ModelInput.from_ints(tokens), 2, params).result()
            found += [(list(s.tokens), list(s.logprobs)) for s in reply.sequences]
            look()
        all_there.wait()
    return found


def all_clients(sdk, login, *look):
    """Each works while all others have an adapter as well."""
    all_there = Barrier(CLIENTS, timeout=PATIENCE_S)
    with ThreadPoolExecutor(CLIENTS) as threads:
        return list(
            threads.map(lambda n: one_client(sdk, login, n, all_there, *look), range(CLIENTS))
        )


@pytest.mark.filterwarnings("ignore")  # what the official one leaves open
@pytest.mark.parametrize(
    # soak: the official one once hung as it closed, each number there, each session ended
    "name",
    ["tinkex", pytest.param("tinker", marks=pytest.mark.soak)],
)
def test_clients_of_a_small_memory_get_the_numbers_of_a_large_one(name, load_sdk, login, small):
    sdk = load_sdk(name)
    spilled, seen = small.data_dir / "spill" / "0", set()
    found = all_clients(sdk, small.login, lambda: seen.update(spilled.glob("*.safetensors")))
    assert found == all_clients(sdk, login)
    assert len(seen) >= CLIENTS - 2
    assert spilled.stat().st_mode & 0o777 == 0o700
