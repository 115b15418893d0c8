"""One program on three releases of the official SDK: each runs, and the numbers are the same."""

import json

import pytest

pytestmark = pytest.mark.interop


@pytest.fixture
def found(workplace, python_of):
    def run(environment):
        done = workplace.run(python_of(environment), workplace.program("training_and_sampling.py"))
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize(
    ("environment", "version"),
    [("sdk-0.25", "0.25.0"), pytest.param("sdk-0.22", "0.22.7", marks=pytest.mark.soak)],
)
def test_program_of_an_older_sdk_runs_and_gives_the_numbers_of_the_newest(
    found, environment, version
):
    old, new = found(environment), found("dev")
    assert (old["version"], new["version"]) == (version, "0.38.0")
    assert new["found"]["training"]["losses"][-1] < new["found"]["training"]["losses"][0] / 2
    for part, numbers in old["found"].items():
        if part == "custom" and numbers is None:  # no torch in that environment
            continue
        assert rounded(numbers) == rounded(new["found"][part]), part


def rounded(value):
    """Floats to what both ways of writing them keep: 0.22 sends and gets JSON."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return value
