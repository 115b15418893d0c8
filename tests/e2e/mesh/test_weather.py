"""Lines that lose and hold up what passes, and machines that fall silent.

One process for each worker. Unlike a crash, none of this is told to anybody: nothing is reset.
"""

import httpx
import pytest
from mesh_hosts import processes_apart
from mesh_processes import CLOCK
from mesh_program import SCRIPTED, program
from mesh_users import scripted_text, streamed, told, until
from mesh_witness import Witness

PROCESSORS = ("processor-1", "processor-2")
SCRIPT = program(tokens_per_s=200)
TOKENS = 300
"""Of a stream: a second and a half."""

pytestmark = [pytest.mark.soak, pytest.mark.parametrize("transport", ["tls", "iroh"])]


@pytest.fixture
def apart(transport, tmp_path):
    """A network each of whose workers has a machine of its own."""
    with processes_apart(tmp_path, transport, seed=2) as processes:
        processes.init()
        processes.start("auth")
        others = [processes.start(name, wait=False, program=SCRIPT) for name in PROCESSORS]
        processes.start_all("gateway-1", "client-1")
        for worker in others:
            processes.wait_ready(worker)
        yield processes


def streams(user, seed):
    """Read a stream, which must be right; the longest pause in it, in seconds."""
    with user.openai(user.secret) as client:
        text, pause_s = streamed(client, SCRIPTED, "Once", max_tokens=TOKENS, seed=seed)
    assert text == scripted_text(SCRIPTED, "Once", max_tokens=TOKENS, seed=seed)
    return pause_s


def test_nothing_is_lost_where_every_line_loses_a_tenth_or_stalls(apart, transport):
    for wire in apart.hosts.wires():
        if transport == "iroh":
            wire.loss = 0.1
        else:
            wire.delay_s, wire.stall_s = 0.02, 0.6
    user = Witness(apart.page("client-1", "url"))
    pauses = [streams(user, seed) for seed in range(5)]
    told("longest pause of each stream", pauses)
    user.use(5)
    user.settled(10)
    before = user.everything()
    assert user.writes()
    user.assert_still_there(before)
    if transport == "iroh":
        wires = apart.hosts.wires("client-1")
        lost, passed = (sum(getattr(wire, name) for wire in wires) for name in ("lost", "passed"))
        assert 0.05 < lost / (lost + passed) < 0.15, "the relays are what they talk through"
    else:
        assert max(pauses) > 0.1, "the relays are what they talk through"
    user.close()


def busy(apart):
    """The processor that works on the only request there is."""
    for name in PROCESSORS:
        if httpx.get(f"{apart.page(name)}/status", timeout=20).json()["load"] > 0:
            return name
    raise AssertionError("nobody works")


def test_processor_that_falls_silent_in_mid_stream_costs_a_pause(apart):
    user = Witness(apart.page("client-1", "url"))
    user.use()
    until(lambda: knows_both(apart), 30, "both processors found")
    pauses = []
    for seed in range(3):
        with user.openai(user.secret) as client:
            silenced, text, last, pause_s = None, "", None, 0.0
            for chunk in client.completions.create(
                model=SCRIPTED, prompt="Once", max_tokens=TOKENS, seed=seed, stream=True
            ):
                now = CLOCK.monotonic()
                text += chunk.choices[0].text if chunk.choices else ""
                if silenced is None and len(text) >= 20:
                    silenced = busy(apart)
                    apart.hosts.part([silenced], [n for n in apart.workers if n != silenced])
                elif silenced is not None:
                    pause_s = max(pause_s, now - last)
                last = now
        assert text == scripted_text(SCRIPTED, "Once", max_tokens=TOKENS, seed=seed)
        pauses.append(pause_s)
        apart.hosts.heal()
        until(lambda: knows_both(apart), what="the processor found again")
    told("pause after silence", pauses)
    assert min(pauses) > 0.5, "silence is not noticed at once, so the line was not cut"
    user.settled(4)
    user.close()


def knows_both(apart):
    """Whether the gateway would send requests to both processors."""
    page = httpx.get(f"{apart.page('gateway-1')}/network", timeout=20).json()
    peers = {apart.workers[name].ready["peer_id"] for name in PROCESSORS}
    return peers <= {one["peer_id"] for one in page if one["status"] is not None}
