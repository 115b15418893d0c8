"""The attack list: each is tried, and each defence turned off to see that it alone stands there.

What there is, lies in `tests/support/mesh_attacks`; which of it the issue asks for, in
`mesh_attacks.listed`. docs/mesh-security.md tells both to people. Over real links:
`test_network.py` beside this file.
"""

import re
from pathlib import Path

import pytest
from mesh_attacks.listed import LISTED, SUITES
from mesh_attacks.registry import is_repelled

ROOT = Path(__file__).parents[4]
BY_NAME = {suite.named(attack): (suite, attack) for suite in SUITES for attack in suite.attacks}
DEFENCES = [(suite, defence) for suite in SUITES for defence in suite.defences]


def named(value):
    suite, defence = value
    if defence.method:
        return f"{suite.name}-{defence.name}"
    return f"{suite.name}-{defence.off.__name__}"


@pytest.mark.parametrize("name", BY_NAME)
async def test_attack_is_repelled(name, tmp_path):
    suite, attack = BY_NAME[name]
    assert await is_repelled(attack, suite.classes, tmp_path)


async def through(suite, defence, attacks, folder):
    """Those attacks that get through without a defence."""
    weak = defence.removed(suite.classes)
    found = set()
    for attack in attacks:
        own = folder / attack.__name__
        own.mkdir()
        if not await is_repelled(attack, weak, own):
            found.add(attack)
    return found


@pytest.mark.parametrize("what", DEFENCES, ids=named)
async def test_without_a_defence_its_own_attacks_get_through_and_no_other_on_its_class(
    what, tmp_path
):
    suite, defence = what
    found = await through(suite, defence, suite.near(defence), tmp_path)
    assert found == set(defence.attacks)


@pytest.mark.soak
@pytest.mark.parametrize("what", DEFENCES, ids=named)
async def test_without_a_defence_its_own_attacks_get_through_and_no_other_at_all(what, tmp_path):
    suite, defence = what
    found = await through(suite, defence, suite.attacks, tmp_path)
    assert found == set(defence.attacks)


def test_names_are_unique():
    assert len(BY_NAME) == sum(len(suite.attacks) for suite in SUITES)
    assert len({suite.name for suite in SUITES}) == len(SUITES)


def over_links():
    source = (Path(__file__).parent / "test_network.py").read_text()
    return {f"network.{name}" for name in re.findall(r"async def (test_\w+)", source)}


def test_every_attack_that_is_listed_is_here_with_its_defence():
    assert all(LISTED.values())
    assert {name for names in LISTED.values() for name in names} <= {*BY_NAME, *over_links()}


def test_the_page_for_people_names_each_attack_and_tests_that_there_are():
    page = (ROOT / "docs" / "mesh-security.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE))
    assert LISTED.keys() <= rows.keys()
    told = {name for item in LISTED for name in re.findall(r"`(\w+\.\w+)`", rows[item])}
    assert told <= {*BY_NAME, *over_links()}
    assert told >= {name for names in LISTED.values() for name in names}
