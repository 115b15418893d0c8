"""schemathesis over the OpenAPI document of a server on a loopback port.

No 5xx but a deliberate 503, no request that takes long, every reply as the document says, nothing
accepted that the document rules out, and a server that trains as before at the end.
"""

import json
import os
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import httpx
import psutil
import pytest
import reply_support
from interop_environments import ENVIRONMENTS
from server_support import BASE_MODEL, KEY, batch_json

from tinkex.server.config import Limits

HOOKS = Path(reply_support.__file__).parent / "fuzz_hooks.py"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "negative_data_rejection",
)
MOST_SECONDS = 10
MOST_GROWTH = 300 * 2**20


class Client:
    """Calls a server on a port."""

    def __init__(self, http):
        self.http = http

    def ok(self, path, body):
        response = self.http.post(path, json=body)
        assert response.status_code == 200, (path, response.text)
        return response.json()

    def result(self, future):
        body = {"request_id": future["request_id"]}
        while (answer := self.ok("/retrieve_future", body)).get("type") == "try_again":
            pass
        return answer

    def setting(self):
        """Make one of everything: the ids by the names of the fields that take them."""
        session = self.ok("/create_session", {"tags": [], "sdk_version": "1"})["session_id"]
        new = {"base_model": BASE_MODEL, "lora_config": {"rank": 4, "seed": 1}}
        future = self.ok("/create_model", {"session_id": session, "model_seq_id": 10**6, **new})
        model = self.result(future)["model_id"]
        body = {
            "session_id": session,
            "sampling_session_seq_id": 10**6,
            "base_model": BASE_MODEL,
        }
        sampler = self.ok("/create_sampling_session", body)["sampling_session_id"]
        return {
            "session_id": session,
            "model_id": model,
            "run_id": model,
            "training_run_id": model,
            "sampling_session_id": sampler,
            "sampler_id": sampler,
            "base_model": BASE_MODEL,
            "request_id": future["request_id"],
        }

    def loss(self, model, seq_id):
        """Loss of a batch that never changes."""
        batch = batch_json(model, seq_id)
        batch["forward_input"] = batch.pop("forward_backward_input")
        return self.result(self.ok("/forward", batch))["metrics"]["loss:sum"]


def schemathesis(url, known, *options, folder):
    """Run it: (how many cases, what it says of each failure)."""
    python = ENVIRONMENTS["fuzz"].make()
    report = folder / "report.xml"
    command = [
        str(python.parent / "schemathesis"),
        "run",
        f"{url}/openapi.json",
        f"--checks={','.join(CHECKS)}",
        "--continue-on-failure",
        f"--max-response-time={MOST_SECONDS}",
        "--report=junit",
        f"--report-junit-path={report}",
        "--warnings=off",
        *options,
    ]
    environment = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "FUZZ_KEY": KEY,
        "FUZZ_KNOWN": json.dumps(known),
        "SCHEMATHESIS_HOOKS": str(HOOKS),
        "NO_COLOR": "1",
        "no_proxy": "*",
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stdout[-3000:] + done.stderr[-3000:]
    (cases,) = [line for line in done.stdout.splitlines() if " generated" in line]
    failures = [fault.text or "" for fault in ET.parse(report).iter("failure")]
    assert failures or done.returncode == 0, done.stdout[-3000:]
    return int(cases.split()[0]), [text for text in failures if not _comes_later(text)]


def _comes_later(text):
    """Whether a failure is that a bad batch was taken: on purpose, it fails its future."""
    return "ST201" in text and "/api/v1/forward" in text and "ST101" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "options", "least"),
    [
        (1, ("--phases=fuzzing", "-n", "8"), 500),
        pytest.param(
            2,
            ("--phases=coverage,fuzzing", "-n", "120"),
            10_000,
            marks=[pytest.mark.soak],
        ),
    ],
)
def test_every_reply_to_generated_requests_is_as_described(
    make_server, tmp_path, seed, options, least
):
    with (
        make_server(
            limits=Limits(max_rank=64),
            sequence_gap_timeout_s=0.05,
            session_ttl_s=3600,
            long_poll_s=0.2,
        ) as server,
        httpx.Client(
            base_url=f"{server.url}/api/v1", headers={"X-API-Key": KEY}, timeout=30, trust_env=False
        ) as http,
    ):
        client = Client(http)
        known, healthy = client.setting(), client.setting()
        before = client.loss(healthy["model_id"], 1)
        memory = psutil.Process().memory_info().rss
        cases, failures = schemathesis(
            server.url, known, f"--seed={seed}", *options, folder=tmp_path
        )
        assert not failures, "\n".join(failures)
        assert cases >= least
        assert client.loss(healthy["model_id"], 2) == before
        assert psutil.Process().memory_info().rss - memory < MOST_GROWTH
