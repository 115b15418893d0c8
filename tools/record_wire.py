"""Drive the installed official SDK against a scripted peer, and report what it does anew.

    python tools/record_wire.py                  # every case; exit 1 if any differs
    python tools/record_wire.py sample_minimal   # some cases
    python tools/record_wire.py --write          # write the ones that differ anew

The peer answers as the recording of a case does; what the SDK asks, and what it makes of the
answers, is compared as decoded values. Left out is what differs from run to run: ids the SDK draws,
times, sequence numbers (their order counts), and the versions of SDK, Python and platform. A new
release of the SDK is thus a diff to read: install it, `--write`, then `git diff`.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import zstandard
from wire_cases import CASES, NOT_DRIVEN, Stage, finished
from wire_peer import Peer, protobuf_fields

log = logging.getLogger("record_wire")
FIXTURES = Path(__file__).parent.parent / "tests" / "support" / "fixtures" / "wire"

# Headers whose value belongs to the machine or the moment; that they are sent still counts.
VOLATILE = {
    "user-agent",
    "x-idempotency-key",
    "x-sdk-version",
    "x-stainless-arch",
    "x-stainless-os",
    "x-stainless-package-version",
    "x-stainless-runtime-version",
    "x-tinker-create-promise-roundtrip-time",
}
OF_THE_CONNECTION = {"accept", "host", "connection", "content-length", "accept-encoding"}
KEPT_ROWS = 4
"""Of a training result; the others say nothing new."""
SEQUENCE_NUMBERS = ("seq_id", "model_seq_id", "sampling_session_seq_id", "custom_loss_seq_id")
ATTEMPTS = 2
"""What differs must differ so often: on a busy machine threads of the SDK may pass each other."""


def record(tinker: Any, name: str, recording: dict[str, Any]) -> dict[str, Any]:
    """Run one case and return its new recording."""
    case = CASES[name]
    new = {"case": name, "sdk": f"tinker {tinker.__version__}", "call": recording.get("call")}
    peer = Peer(recording, case.config)
    peer.start()
    try:
        result: Any = rendered(finished(case.run(Stage(tinker, peer))))
        failure = None
    except Exception as error:  # what the SDK raises is part of the recording
        result, failure = None, f"{type(error).__module__}.{type(error).__name__}"
        log.info("%s: %s", name, error)
    finally:
        peer.stop()
    new["exchanges"] = peer.exchanges
    new["sdk_result"] = result
    if failure is not None:
        new["sdk_error_type"] = failure
    if peer.unknown:
        new["not_in_the_recording"] = sorted(set(peer.unknown))
    return new


def rendered(value: Any) -> Any:
    """Write a result of the SDK down as the recordings hold it."""
    kind = type(value).__name__
    if kind == "ForwardBackwardOutput":
        rows = [
            {key: rendered(tensor) for key, tensor in sorted(row.items())}
            for row in value.loss_fn_outputs
        ]
        fields = {
            "loss_fn_output_type": value.loss_fn_output_type,
            "metrics": value.metrics,
            "loss_fn_outputs": rows[:KEPT_ROWS],
            "n_outputs": len(rows),
        }
        return {kind: fields}
    if kind == "TensorData":
        names = ("dtype", "shape", "data", "sparse_crow_indices", "sparse_col_indices")
        return {kind: {name: plain(getattr(value, name)) for name in names}}
    if kind == "SampleResponse":
        names = ("stop_reason", "sequence_id", "tokens", "logprobs", "topk_logprobs")
        sequences = [{n: plain(getattr(one, n)) for n in names} for one in value.sequences]
        alternatives = value.prompt_alt_tokens
        targets = value.target_prompt_logprobs
        fields = {
            "sequences": sequences,
            "prompt_logprobs": plain(value.prompt_logprobs),
            "topk_prompt_logprobs": plain(value.topk_prompt_logprobs),
            "prompt_cache_hit_tokens": value.prompt_cache_hit_tokens,
            "target_prompt_logprobs": None if targets is None else rendered(targets),
            "prompt_alt_tokens": alternatives
            and {n: rendered(getattr(alternatives, n)) for n in ("tokens", "logprobs")},
        }
        return {kind: fields}
    if hasattr(value, "model_dump"):
        return {kind: json.loads(value.model_dump_json())}
    if value is None or isinstance(value, (str, int, float, list, dict)):
        return plain(value)
    return re.sub(r" at 0x\w+", "", repr(value))


def plain(value: Any) -> Any:
    """Turn arrays and tuples into lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value


def comparable(recording: dict[str, Any]) -> list[str]:
    """Lines that are equal for two recordings of the same behaviour."""
    exchanges = recording.get("exchanges", [])
    bodies = [_body(exchange["request"]) for exchange in exchanges]
    requests = []
    for exchange, body in zip(exchanges, bodies, strict=True):
        request = exchange["request"]
        headers = {name.lower(): value for name, value in request.get("headers", {}).items()}
        requests.append(
            {
                "asks": f"{request['method']} {request['path']}",
                "query": request.get("query") or {},
                "headers": {
                    name: "*" if name in VOLATILE else value
                    for name, value in sorted(headers.items())
                    if name not in OF_THE_CONNECTION
                },
                "body": _ranked(body, bodies),
                "answer": exchange["response"]["status"],
            }
        )
    # calls made side by side arrive in any order
    requests.sort(key=lambda one: json.dumps(one, sort_keys=True))
    shown = {
        "requests": requests,
        "result": _without_addresses(recording.get("sdk_result")),
        "error": recording.get("sdk_error_type"),
        "asked beyond the recording": recording.get("not_in_the_recording"),
    }
    text = json.dumps(shown, indent=1, sort_keys=True, ensure_ascii=False)
    # the numbers of a session's models and samplers, and of a sampler's requests
    text = re.sub(r"(sess-\d+:(?:train|sample):)\d+(:\d+)?", r"\1#", text)
    text = re.sub(r"eyJ[\w.-]+", "JWT", text)
    text = re.sub(r'("sdk_version": ")[^"]+', r"\1*", text)
    return text.splitlines()


def _body(request: dict[str, Any]) -> Any:
    if "protobuf" not in request.get("body_kind", ""):
        return request.get("body")
    raw = base64.b64decode(request["body_raw_base64"])
    if raw.startswith(b"\x28\xb5\x2f\xfd"):
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    return protobuf_fields(raw)


def _ranked(body: Any, bodies: list[Any]) -> Any:
    """Replace sequence numbers by their place among those of the case."""
    if not isinstance(body, dict):
        return body
    changed = dict(body)
    for name in SEQUENCE_NUMBERS:
        if name in body:
            known = sorted({one[name] for one in bodies if isinstance(one, dict) and name in one})
            changed[name] = f"number {known.index(body[name])}"
    return changed


def _without_addresses(value: Any) -> Any:
    return re.sub(r" at 0x\w+", "", value) if isinstance(value, str) else value


def drift(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the lines in which two recordings differ, as a diff; empty where they do not."""
    return list(
        difflib.unified_diff(comparable(old), comparable(new), "recorded", "now", lineterm="", n=2)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="the cases to run; all if none")
    parser.add_argument("--write", action="store_true", help="write what differs anew")
    parser.add_argument("--fixtures", type=Path, default=FIXTURES, help="folder of the recordings")
    parser.add_argument("--verbose", action="store_true", help="print what the SDK raises")
    options = parser.parse_args()
    known = {path.stem for path in options.fixtures.glob("*.json")}
    if unknown := set(options.cases) - CASES.keys():
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    os.environ["TINKER_TAGS"] = "tag-a"
    os.environ["TINKER_TELEMETRY"] = "0"
    warnings.simplefilter("ignore")  # the cases call what is deprecated, too
    logging.basicConfig(level=logging.CRITICAL, format="%(message)s")
    log.setLevel(logging.INFO if options.verbose else logging.CRITICAL)
    import tinker

    print(f"tinker {tinker.__version__} against {len(known)} recordings")
    differing = 0
    for name in options.cases or sorted(CASES):
        path = options.fixtures / f"{name}.json"
        old = json.loads(path.read_bytes()) if path.exists() else {"exchanges": []}
        for _ in range(ATTEMPTS):
            new = record(tinker, name, old)
            found = drift(old, new)
            if not found:
                break
        if found:
            differing += 1
            print(f"\n{name}: differs", *found, sep="\n  ")
            if options.write:
                path.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n")
    if not options.cases:
        for name in sorted(known - CASES.keys() - NOT_DRIVEN.keys()):
            differing += 1
            print(f"{name}: recorded, and nothing drives it")
        for name, reason in NOT_DRIVEN.items():
            print(f"{name}: not driven ({reason})")
    print(f"\n{len(options.cases or CASES)} cases run, {differing} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
