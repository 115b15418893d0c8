"""Sampling clients in other processes: pickled, by handle, and between the two SDKs."""

import gc
import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest
from patience import PATIENCE_S

import tinkex as tinker
from tinkex.errors import CredentialError, InputError, UnsupportedError

PROMPT = tinker.ModelInput.from_ints([5, 6, 7])
PARAMS = tinker.SamplingParams(max_tokens=6, seed=4)


@pytest.fixture
def sampler(login):
    with tinker.ServiceClient(**login) as service:
        yield service.create_sampling_client(base_model="tinkex/sprout").result()


def tokens_of(client):
    return client.sample(PROMPT, 1, PARAMS).result(PATIENCE_S).sequences[0].tokens


def work(clients):
    """In another process: sample from every client."""
    return [tokens_of(client) for client in clients]


def test_pickled_clients_sample_the_same_in_other_processes(sampler):
    expected = tokens_of(sampler)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        found = list(pool.map(work, [[sampler, sampler], [sampler]]))
    assert found == [[expected, expected], [expected]]


def test_clones_of_a_process_share_one_connection_and_end_with_it(sampler):
    clones = [pickle.loads(pickle.dumps(sampler)) for _ in range(5)]
    expected = tokens_of(sampler)
    assert [tokens_of(clone) for clone in clones] == [expected] * 5
    assert len({id(clone._connection) for clone in clones}) == 1
    numbers = {clone._clone for clone in clones}
    assert len(numbers) == 5
    assert 0 not in numbers
    thread = clones[0]._connection._loop._state._thread
    del clones
    gc.collect()
    thread.join(PATIENCE_S)
    assert thread not in threading.enumerate()


def test_handle_makes_a_client_and_has_no_key_in_it(sampler, login):
    handle = sampler.get_sampler_handle()
    import base64

    assert login["api_key"] not in base64.urlsafe_b64decode(handle).decode()
    clone = tinker.SamplingClient.from_sampler_handle(handle, api_key=login["api_key"])
    assert tokens_of(clone) == tokens_of(sampler)
    assert clone.get_base_model() == "tinkex/sprout"


def test_handle_without_a_key_in_the_process_is_refused(sampler, monkeypatch, tmp_path):
    for name in ("TINKEX_API_KEY", "TINKER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CredentialError):
        tinker.SamplingClient.from_sampler_handle(sampler.get_sampler_handle())


@pytest.mark.parametrize("handle", ["", "nonsense!", "e30=", "W10=", "bm90IGpzb24="])
def test_text_that_is_no_handle_is_refused(handle):
    with pytest.raises(InputError, match="handle"):
        tinker.SamplingClient.from_sampler_handle(handle, api_key="tml-key-0123456789")


def test_what_needs_the_official_sdk_s_private_object_is_refused_by_name():
    with pytest.raises(UnsupportedError, match=r"SamplingClient\.create"):
        tinker.SamplingClient.create(object())


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
def test_handles_go_from_one_sdk_to_the_other(sampler, login, load_sdk):
    official = load_sdk("tinker")
    theirs = official.SamplingClient.from_sampler_handle(
        sampler.get_sampler_handle(), api_key=login["api_key"]
    )
    prompt = official.ModelInput.from_ints([5, 6, 7])
    params = official.SamplingParams(max_tokens=6, seed=4)
    expected = tokens_of(sampler)
    assert theirs.sample(prompt, 1, params).result(PATIENCE_S).sequences[0].tokens == expected
    ours = tinker.SamplingClient.from_sampler_handle(
        theirs.get_sampler_handle(), api_key=login["api_key"]
    )
    assert tokens_of(ours) == expected
