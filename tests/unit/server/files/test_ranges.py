"""Parts of a download: exactly what was asked for, of exactly what was there."""

import asyncio
import base64
import hashlib

import pytest
from server_support import settle

from tinkex.server.files import ranges
from tinkex.server.files.content import BytesContent
from tinkex.server.files.ranges import ContentReply

DATA = bytes(range(256)) * 4
SHA256 = hashlib.sha256(DATA).hexdigest()
TAG = f'"{SHA256}"'


class Watched(BytesContent):
    closed = 0
    reads = 0

    def read(self, offset, length):
        self.reads += 1
        return super().read(offset, length)

    def close(self):
        self.closed += 1


async def connected():
    await asyncio.Event().wait()


async def ask(method="GET", data=DATA, **headers):
    content = Watched(data)
    reply = ContentReply(
        content, sha256=hashlib.sha256(data).hexdigest(), media_type="a/b", name="n"
    )
    raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    messages = []

    async def send(message):
        messages.append(message)

    await reply({"type": "http", "method": method, "headers": raw}, connected, send)
    assert content.closed == 1
    start, *bodies = messages
    assert [body.get("more_body", False) for body in bodies][-1] is False
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, b"".join(body["body"] for body in bodies)


async def test_whole_says_what_it_is():
    status, headers, body = await ask()
    assert (status, body) == (200, DATA)
    assert headers["content-length"] == "1024"
    assert headers["accept-ranges"] == "bytes"
    assert headers["etag"] == TAG
    digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    assert headers["repr-digest"] == f"sha-256=:{digest}:"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-", 100, 1024),
        ("bytes=100-199", 100, 200),
        ("bytes=1000-99999", 1000, 1024),
        ("bytes=-24", 1000, 1024),
        ("bytes=-99999", 0, 1024),
        ("Bytes = 5 - 6", 5, 7),
    ],
)
async def test_part_that_is_asked_for_comes(asked, start, end):
    status, headers, body = await ask(range=asked)
    assert (status, body) == (206, DATA[start:end])
    assert headers["content-range"] == f"bytes {start}-{end - 1}/1024"
    assert headers["content-length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
async def test_part_beyond_the_end_is_refused_with_the_size(asked):
    status, headers, body = await ask(range=asked)
    assert (status, body) == (416, b"")
    assert headers["content-range"] == "bytes */1024"


@pytest.mark.parametrize(
    "asked", ["", "bytes=", "bytes=-", "lines=1-2", "bytes=5-2", "bytes=1-2,4-5", "bytes=a-b"]
)
async def test_what_is_no_single_range_gets_the_whole(asked):
    status, _, body = await ask(range=asked)
    assert (status, body) == (200, DATA)


async def test_part_is_given_only_of_the_content_that_the_client_began():
    assert (await ask(range="bytes=5-", if_range=TAG))[0] == 206
    for tag in (f'"{SHA256[:-1]}x"', f"W/{TAG}", "Sat, 01 Jan 2000 00:00:00 GMT"):
        assert (await ask(range="bytes=5-", if_range=tag))[0] == 200


async def test_content_that_the_client_has_is_not_sent():
    status, headers, body = await ask(if_none_match=f'"x", {TAG}')
    assert (status, body) == (304, b"")
    assert headers["etag"] == TAG


async def test_head_says_the_same_without_the_bytes():
    status, headers, body = await ask(method="HEAD", range="bytes=5-")
    assert (status, body) == (200, b"")
    assert headers["content-length"] == "1024"


async def test_empty_content_is_sent():
    status, headers, body = await ask(data=b"")
    assert (status, headers["content-length"], body) == (200, "0", b"")


async def test_client_that_goes_away_ends_the_reading(monkeypatch):
    monkeypatch.setattr(ranges, "CHUNK_BYTES", 16)
    content = Watched(DATA)
    reply = ContentReply(content, sha256=SHA256, media_type="a/b", name="n")
    gone, sent = asyncio.Event(), []

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if len(sent) == 4:
            gone.set()
        await settle()

    await reply({"type": "http", "method": "GET", "headers": []}, receive, send)
    assert content.reads <= 4
    assert content.closed == 1


async def test_slow_client_is_waited_for_and_nothing_is_read_ahead(monkeypatch):
    monkeypatch.setattr(ranges, "CHUNK_BYTES", 16)
    content = Watched(DATA)
    reply = ContentReply(content, sha256=SHA256, media_type="a/b", name="n")
    slow = asyncio.Event()

    async def send(message):
        if message["type"] == "http.response.body":
            await slow.wait()

    scope = {"type": "http", "method": "GET", "headers": []}
    task = asyncio.create_task(reply(scope, connected, send))
    while not content.reads:
        await settle()
    await settle(100)
    assert content.reads == 1
    slow.set()
    await task
    assert content.reads == 64
