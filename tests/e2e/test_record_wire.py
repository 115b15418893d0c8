"""The installed official SDK still behaves as it was recorded, and what changed would be told."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "support" / "fixtures" / "wire"


def record(*arguments):
    script = ROOT / "tools" / "record_wire.py"
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_official_sdk_behaves_as_recorded():
    """A0.1"""
    done = record()
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 differ" in done.stdout


def test_drift_is_told_and_written(tmp_path):
    """A0.1: a request that changed, an answer read otherwise, a call nobody recorded."""
    recordings = tmp_path / "wire"
    recordings.mkdir()
    cases = ("optim_step_defaults", "save_state", "rest_get_session")
    for case in cases:
        shutil.copy(FIXTURES / f"{case}.json", recordings)

    optim, save, rest = (json.loads((recordings / f"{case}.json").read_bytes()) for case in cases)
    optim["exchanges"][0]["request"]["body"]["adam_params"]["beta1"] = 0.5
    save["sdk_result"]["SaveWeightsResponse"]["path"] = "tinker://elsewhere"
    rest["exchanges"][0]["request"]["path"] = "/api/v1/session/sess-1"
    for case, recording in zip(cases, (optim, save, rest), strict=True):
        (recordings / f"{case}.json").write_text(json.dumps(recording))

    told = record("--fixtures", recordings, "--write", *cases)
    assert told.returncode == 1
    assert all(f"{case}: differs" in told.stdout for case in cases)
    assert '-     "beta1": 0.5' in told.stdout
    assert "GET /api/v1/sessions/sess-1" in told.stdout

    again = record("--fixtures", recordings, *cases[:2])
    assert again.returncode == 0, again.stdout
    written = json.loads((recordings / "optim_step_defaults.json").read_bytes())
    assert written["exchanges"][0]["request"]["body"]["adam_params"]["beta1"] != 0.5


def test_case_that_does_not_exist_is_refused():
    refused = record("no_such_case")
    assert refused.returncode == 2
    assert "no such case: no_such_case" in refused.stderr
