"""Bodies: limits before and after decompression, damage, and hanging up."""

import gzip
import zlib

import pytest
import zstandard

from tinkex.errors import APIStatusError
from tinkex.server.http.bodies import PREFIX_BYTES, ClientDisconnected, read_body

LIMIT = 200_000


def channel(*chunks, disconnect=False):
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks] + [
        {"type": "http.disconnect"}
        if disconnect
        else {"type": "http.request", "body": b"", "more_body": False}
    ]
    iterator = iter(messages)

    async def receive():
        return next(iterator)

    return receive


async def read(*chunks, encoding="", drain=0, limit=LIMIT, disconnect=False):
    return await read_body(
        channel(*chunks, disconnect=disconnect), encoding=encoding, limit=limit, drain_limit=drain
    )


COMPRESSORS = {
    "": lambda data: data,
    "identity": lambda data: data,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("encoding", COMPRESSORS)
@pytest.mark.parametrize("size", [0, 10, 150_000, LIMIT])
async def test_body_within_the_limit_comes_whole(encoding, size):
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    sent = COMPRESSORS[encoding](data)
    body = await read(sent[: len(sent) // 2], sent[len(sent) // 2 :], encoding=encoding)
    assert body.data == data
    assert not body.oversize


@pytest.mark.parametrize("encoding", COMPRESSORS)
async def test_body_above_the_limit_is_refused(encoding):
    with pytest.raises(APIStatusError, match=f"above {LIMIT}") as caught:
        await read(COMPRESSORS[encoding](b"a" * (LIMIT + 1)), encoding=encoding)
    assert caught.value.status_code == 413


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_bomb_is_cut_off_at_the_limit(encoding):
    bomb = COMPRESSORS[encoding](bytes(50_000_000))
    assert len(bomb) < LIMIT
    with pytest.raises(APIStatusError) as caught:
        await read(bomb, encoding=encoding)
    assert caught.value.status_code == 413


@pytest.mark.parametrize("encoding", COMPRESSORS)
async def test_oversize_body_that_is_drained_keeps_its_beginning(encoding):
    data = zlib.compress(bytes(1000)) + bytes(range(256)) * 4000
    sent = COMPRESSORS[encoding](data)
    chunks = [sent[i : i + 10_000] for i in range(0, len(sent), 10_000)]
    body = await read(*chunks, encoding=encoding, drain=10_000_000)
    assert body.oversize
    assert body.data == data[:PREFIX_BYTES]


async def test_draining_has_an_end():
    with pytest.raises(APIStatusError) as caught:
        await read(*[b"a" * 100_000] * 10, drain=500_000)
    assert caught.value.status_code == 413


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["truncated", "trailing", "garbage"])
async def test_damaged_body_is_refused(encoding, damage):
    sent = COMPRESSORS[encoding](b"hello" * 1000)
    damaged = {"truncated": sent[:-6], "trailing": sent + b"more", "garbage": b"not compressed"}
    with pytest.raises(APIStatusError, match=encoding) as caught:
        await read(damaged[damage], encoding=encoding)
    assert caught.value.status_code == 400


async def test_unknown_encoding_is_refused_by_name():
    with pytest.raises(APIStatusError, match=r"br.*zstd, gzip") as caught:
        await read(b"x", encoding="br")
    assert caught.value.status_code == 415


async def test_client_that_hangs_up_is_noticed():
    with pytest.raises(ClientDisconnected):
        await read(b"half", disconnect=True)
