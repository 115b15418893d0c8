"""What the logs of a live network's workers hold, as their pages for operators tell it."""

import httpx
from mesh_users import PATIENCE_S, until

ALONE = frozenset({"permits"})
"""Feeds that never leave their worker."""
PAGE_BYTES = 4096


def heads(mesh, name):
    """The end of every log that a worker holds: entries and hash, by feed, author and epoch."""
    found = httpx.get(f"{mesh.page(name)}/logs", timeout=20)
    assert found.status_code == 200, found.text
    return {
        (one["feed"], one["author"], one["epoch"]): (one["entries"], one["hash"])
        for one in found.json()
        if one["feed"] not in ALONE
    }


def same_heads(mesh, names, seconds=PATIENCE_S):
    """Wait until workers hold the same; return what, and how many seconds that took."""

    def agreed():
        first, *others = [heads(mesh, name) for name in names]
        return all(other == first for other in others) and first

    return until(agreed, seconds, f"equal logs at {', '.join(names)}")


def damage(path, rng, *, flips=8):
    """Flip bits of a file, anywhere but in its first page; return where."""
    content = bytearray(path.read_bytes())
    assert len(content) > PAGE_BYTES, f"{path} holds nothing yet"
    places = [rng.randrange(PAGE_BYTES, len(content)) for _ in range(flips)]
    for place in places:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))
    return places
