"""A server of the Tinker API that does nothing: it answers at once, the same bytes to every client.

    python benchmarks/null_server.py --ready-file FILE

What is left of a measurement against it is the client. HTTP/1.1 over asyncio's streams, written for
this and nothing else: it trusts its client.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import time
from pathlib import Path

import numpy as np

from tinkex.types import ForwardBackwardOutput, SampledSequence, SampleResponse, TensorData
from tinkex.wire.proto import encode_forward_backward_output, encode_sample_response

PREFIX = "/api/v1/"
SAMPLED_TOKENS = 64
TRAINED = (128, 1024)
"""Data of a batch, tokens of each."""


class NullServer:
    """Answers by path alone."""

    def __init__(self) -> None:
        self.heartbeats: list[float] = []
        self.retrieved: set[str] = set()
        self._numbers = itertools.count()
        self._finished: dict[str, list[str]] = {}
        self._news: dict[str, asyncio.Event] = {}
        tokens = np.arange(SAMPLED_TOKENS, dtype=np.int32)
        logprobs = np.full(SAMPLED_TOKENS, -0.5, np.float32)
        self._sample = encode_sample_response(
            SampleResponse([SampledSequence("length", "", tokens, logprobs)])
        )
        count, length = TRAINED
        row = {"logprobs": TensorData(np.full(length, -0.5, np.float32))}
        metrics = {"loss:sum": 1.0}
        self._batch = encode_forward_backward_output(
            ForwardBackwardOutput("ArrayRecord", [row] * count, metrics)
        )
        self.batched = False

    async def answer(self, path: str, body: bytes) -> tuple[str, bytes]:
        """Answer one request: (content type, body)."""
        name = path.partition("?")[0].removeprefix(PREFIX)
        if name == "retrieve_future":
            request_id = json.loads(body)["request_id"]
            if request_id.startswith("s"):
                return "application/x-protobuf", self._sample
            if request_id.startswith("f"):
                return "application/x-protobuf", self._batch
            return "application/json", b'{"model_id": "s:train:0"}'
        return "application/json", json.dumps(await self._json(name, body)).encode()

    async def _json(self, name: str, body: bytes) -> object:
        if name == "asample":
            request = json.loads(body)
            request_id = f"s{next(self._numbers)}"
            sampler = request["sampling_session_id"]
            self._finished.setdefault(sampler, []).append(request_id)
            self._event(sampler).set()
            return {"request_id": request_id, "sample_sequence_ids": [request_id]}
        if name == "retrieve_futures":
            return await self._completions(json.loads(body))
        if name == "session_heartbeat":
            self.heartbeats.append(time.monotonic())
            return {}
        if name == "heartbeats":
            return self.heartbeats
        if name == "client/config":
            return {
                "sample_use_retrieve_futures": self.batched,
                "fwdbwd_max_chunk_bytes_count": 50_000_000,
            }
        info = {"model_data": {"model_name": "m"}, "model_id": "s:train:0", "is_lora": True}
        return {
            "create_session": {"session_id": "s"},
            "create_sampling_session": {"sampling_session_id": "s:sample:0"},
            "create_model": {"request_id": "m"},
            "forward_backward": {"request_id": f"f{next(self._numbers)}"},
            "get_info": info,
            "telemetry": {"status": "accepted"},
        }.get(name, {})

    async def _completions(self, request: dict) -> object:
        sampler = request["target"]["sampling_session_id"]
        cursor = request["prev_cursor"]
        finished = self._finished.setdefault(sampler, [])
        if len(finished) <= cursor and request.get("timeout") != 0.0:
            self._event(sampler).clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._event(sampler).wait(), 25)
        new = finished[cursor:]
        completions = [
            {
                "state": "finished",
                "request_id": one,
                "response_payload_uncompressed_size": len(self._sample),
            }
            for one in new
        ]
        return {"completions": completions, "cursor": cursor + len(new)}

    def _event(self, sampler: str) -> asyncio.Event:
        return self._news.setdefault(sampler, asyncio.Event())

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, path, _ = head.split(b" ", 2)
                lower = head.lower()
                at = lower.find(b"content-length:")
                length = int(head[at + 15 : head.index(b"\r\n", at)]) if at >= 0 else 0
                body = await reader.readexactly(length) if length else b""
                kind, answer = await self.answer(path.decode(), body)
                writer.write(
                    f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n"
                    f"content-length: {len(answer)}\r\n\r\n".encode()
                    + answer
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--batched", action="store_true", help="offer retrieve_futures")
    chosen = parser.parse_args()
    null = NullServer()
    null.batched = chosen.batched
    server = await asyncio.start_server(null.serve, "127.0.0.1", 0, limit=2**26, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    beside = chosen.ready_file.with_suffix(".new")
    beside.write_text(json.dumps({"url": f"http://127.0.0.1:{port}"}))
    beside.rename(chosen.ready_file)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
