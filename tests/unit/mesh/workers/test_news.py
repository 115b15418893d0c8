"""How long ago most auth workers were heard of."""

import math
from dataclasses import dataclass, field

import pytest

from tinkex.mesh.feeds.replication import SourceState
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.workers.news import AuthNews

MEMBERS = [KeyPair(bytes([number]) * 32).peer_id for number in (1, 2, 3)]
OTHER = KeyPair(bytes([9]) * 32).peer_id


@dataclass
class Heard:
    """A replicator's sources: ages by peer; `answers` by peer, and those that are found later."""

    ages: dict
    answers: list = field(default_factory=list)
    found: list = field(default_factory=list)

    def sources(self):
        return [SourceState(peer, Role.AUTH, age, 0, 0) for peer, age in self.ages.items()]

    async def ask(self, timeout_s, *, until):
        assert timeout_s == 2.0
        return until(self.answers)

    async def find(self):
        self.answers += self.found


def news(**given):
    heard = Heard(**{"ages": {}, **given})
    return AuthNews(heard, lambda: [member.raw for member in MEMBERS], heard.find)


@pytest.mark.parametrize(
    ("ages", "expected"),
    [
        ({}, math.inf),
        ({0: 1.0}, math.inf),
        ({0: 1.0, 1: 70.0}, 70.0),
        ({0: 1.0, 1: 70.0, 2: 5.0}, 5.0),
        ({0: 1.0, 1: None}, math.inf),
    ],
)
def test_age_is_that_of_a_majority(ages, expected):
    known = {MEMBERS[number]: age for number, age in ages.items()} | {OTHER: 0.0}
    assert news(ages=known).age_s() == expected


async def test_more_are_looked_for_where_too_few_answer():
    assert await news(answers=MEMBERS[:2]).ask(2.0)
    assert await news(answers=MEMBERS[:1], found=MEMBERS[1:]).ask(2.0)
    assert not await news(answers=[MEMBERS[0], OTHER]).ask(2.0)
