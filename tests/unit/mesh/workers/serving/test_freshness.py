"""What a gateway cannot know it does not answer: 503, never 401."""

from __future__ import annotations

import asyncio

import pytest
from mesh_gateway import ScriptedNews, caller_of
from mesh_rpc import caught, settled

from tinkex.errors import APIStatusError, AuthenticationError, ConfigurationError
from tinkex.mesh.accounts.credentials import UnknownCredentialError
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.workers.serving.admission import Admission, AdmissionConfig
from tinkex.mesh.workers.serving.freshness import LOOK_S, Freshness, FreshnessConfig
from tinkex.testing import VirtualClock


class World:
    """A gateway's admission, whose accounts and news are set from outside."""

    def __init__(self, **settings):
        self.clock = VirtualClock()
        self.news = ScriptedNews()
        self.keys = {"right": caller_of()}
        self.errors = []
        self.tasks = Tasks(on_error=self.errors.append)
        self.freshness = Freshness(
            self.news, self.tasks, clock=self.clock, config=FreshnessConfig(**settings)
        )
        self.admission = Admission(
            self, self.freshness, lambda: 1, clock=self.clock, config=AdmissionConfig()
        )

    def verify(self, credential, now):
        if credential not in self.keys:
            raise UnknownCredentialError("not known here")
        return self.keys[credential]

    async def current(self):
        pass

    def asked(self, credential="new"):
        return asyncio.ensure_future(self.admission.caller(credential, "infer"))


@pytest.fixture
async def world():
    made = World()
    yield made
    await made.tasks.stop()
    assert made.errors == []


async def test_key_that_was_made_a_moment_ago_is_asked_for_and_let_in(world):
    async def gives():
        world.keys["new"] = caller_of("bob")
        return True

    world.news.gives = gives
    assert (await world.admission.caller("new", "infer")).account_id == "bob"
    assert world.news.asked == 1
    assert (await world.admission.caller("new", "infer")).account_id == "bob"
    assert world.news.asked == 1


async def test_credential_that_auth_workers_do_not_know_either_is_wrong(world):
    error = await caught(world.admission.caller("wrong", "infer"))
    assert isinstance(error, AuthenticationError)


async def test_credential_of_which_nobody_can_be_asked_is_not_called_wrong(world):
    world.news.gives = False
    error = await caught(world.admission.caller("new", "infer"))
    assert (type(error), error.status_code) != (AuthenticationError, 401)
    assert error.status_code == 503
    assert error.retry_after_ms > 0
    assert (await world.admission.caller("right", "infer")).account_id == "ann"


async def test_many_unknown_credentials_share_one_question_and_wait_for_the_next(world):
    gate = asyncio.Event()

    async def gives():
        await gate.wait()
        return True

    world.news.gives = gives
    first = world.asked("a")
    await settled()
    assert world.news.asked == 1
    others = [world.asked(f"b{number}") for number in range(20)]
    await settled()
    gate.set()
    await settled()
    assert first.done()
    assert not any(one.done() for one in others)
    world.clock.advance(0.2)
    answers = await asyncio.gather(first, *others, return_exceptions=True)
    assert {type(one) for one in answers} == {UnknownCredentialError}
    assert world.news.asked == 2


async def test_everybody_is_refused_by_name_where_auth_workers_were_not_heard_of(world):
    world.news.age, world.news.gives = 61.0, False
    assert "for 61 s" in world.freshness.trouble
    error = await caught(world.admission.caller("right", "infer"))
    assert isinstance(error, APIStatusError)
    assert error.status_code == 503
    assert "has not heard from most auth workers for 61 s" in str(error)
    assert world.news.asked == 1
    await caught(world.admission.caller("right", "infer"))
    assert world.news.asked == 1, "not before a second is over"
    world.clock.advance(1.0)
    world.news.gives = True
    assert await world.admission.caller("right", "infer")
    world.news.age = 3.0
    assert world.freshness.trouble == ""


async def test_one_that_never_heard_says_so_and_who_waits_may_go(world):
    world.news.age, world.news.gives = float("inf"), asyncio.Event().wait
    assert world.freshness.trouble.endswith("auth workers yet")
    waiting = [world.asked("right") for _ in range(2)]
    await settled()
    waiting[0].cancel()
    await settled()
    assert not waiting[1].done()
    await world.tasks.stop()
    assert (await caught(waiting[1])).status_code == 503


def test_times_that_are_none_are_refused():
    with pytest.raises(ConfigurationError):
        FreshnessConfig(stale_after_s=0)


class AgingNews(ScriptedNews):
    """Counts who looks how old it is."""

    def __init__(self, clock, age):
        super().__init__()
        self.clock, self.heard_at = clock, clock.monotonic() - age
        self.looked = 0

    def age_s(self):
        self.looked += 1
        return self.clock.monotonic() - self.heard_at


def aging(age, **settings):
    """A world whose news were heard so many seconds ago; nobody can be asked for newer ones."""
    made = World(**settings)
    made.news = made.freshness._news = AgingNews(made.clock, age)
    made.news.gives = False
    return made


async def test_age_is_not_looked_at_again_within_a_moment():
    world = aging(0.0)
    for _ in range(10):
        await world.freshness.ensure()
        world.clock.advance(LOOK_S / 16)
    assert world.news.looked == 1
    world.clock.advance(LOOK_S)
    await world.freshness.ensure()
    assert world.news.looked == 2


async def test_news_are_never_believed_for_longer_than_is_set():
    world = aging(59.5, stale_after_s=60.0)
    await world.freshness.ensure()
    world.clock.advance(0.25)
    await world.freshness.ensure()
    world.clock.advance(0.5)  # within the moment, and too old
    error = await caught(world.freshness.ensure())
    assert isinstance(error, APIStatusError)
    assert error.status_code == 503
    await world.tasks.stop()


async def test_what_was_not_enough_is_looked_at_again_at_once():
    world = aging(61.0, stale_after_s=60.0)
    await caught(world.freshness.ensure())
    world.news.heard_at = world.clock.monotonic()
    await world.freshness.ensure()
    await world.tasks.stop()
