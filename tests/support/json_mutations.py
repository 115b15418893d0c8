"""Mutations of valid JSON bodies: each damages one thing, the values or their text.

Owns what is made of a body. Every choice comes from the `random.Random` that is passed in.
"""

from __future__ import annotations

import copy
import json

NUMBERS = (0, -1, 1, 0.5, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, 1e308, -0.0)
TEXTS = ("", " ", "x" * 20_000, "\x00", "\ud800", "\udfff\ud800", "../../etc/passwd", "%2e%2e/x")
TEXTS += ("tinker://a/weights/../b", "tinker://" + "a/" * 500, "sess-x", "ﷺ\u202e\ufeff", "null")
OTHERS = (None, True, False, [], {}, [[]], [None], {"": ""}, {"a": {"b": {}}}, [1] * 5000)
# What json.dumps cannot write: put in as text.
TOKEN = "@@fuzz@@"
LITERALS = (
    "NaN",
    "-Infinity",
    "1e400",
    "-1e-400",
    "1" * 5000,
    "[" * 300 + "]" * 300,
    "[" * 50_000 + "]" * 50_000,
    '{"a":' * 300 + "1" + "}" * 300,
    '{"a":' * 20_000 + "1" + "}" * 20_000,
    '"\\ud800"',
    '"\\u0000"',
    '"\\uZZZZ"',
    "nul",
    "+1",
    "01",
    "'x'",
    '"\t"',
    '{"a":1,"a":2}',
    "[1,]",
)


def mutated(random, body):
    """A mutation of a body: (its name, the bytes)."""
    value = copy.deepcopy(body)
    names = []
    for _ in range(random.choice((1, 1, 2))):
        mutation = random.choice(CHANGES)
        names.append(mutation.__name__)
        value = mutation(random, value)
    text = json.dumps(value).replace(json.dumps(TOKEN), random.choice(LITERALS))
    data = text.encode("utf-8", "surrogatepass")
    if random.random() < 0.25:
        damage = random.choice(DAMAGES)
        names.append(damage.__name__)
        data = damage(random, data)
    return "+".join(names), data


def _places(value, place=()):
    yield place
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*place, key))


def _put(value, place, new):
    if not place:
        return new
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return value


def _get(value, place):
    for key in place:
        value = value[key]
    return value


def _any_place(random, value):
    return random.choice(list(_places(value)) if isinstance(value, dict | list) else [()])


def other_value(random, value):
    new = random.choice((*NUMBERS, *TEXTS, *OTHERS))
    return _put(value, _any_place(random, value), copy.deepcopy(new))


def odd_literal(random, value):
    return _put(value, _any_place(random, value), TOKEN)


def without(random, value):
    place = _any_place(random, value)
    holder = _get(value, place[:-1]) if place else None
    if isinstance(holder, dict | list):
        del holder[place[-1]]
    return value


def unknown_key(random, value):
    place = _any_place(random, value)
    if isinstance(inner := _get(value, place), dict):
        inner[random.choice((*TEXTS, "type", "colour", "__proto__", "model_config"))] = 1
    return value


def repeated(random, value):
    place = _any_place(random, value)
    inner = _get(value, place)
    if isinstance(inner, list) and len(inner) < 50:
        _put(value, place, inner * random.choice((2, 100)))
    return value


def swapped(random, value):
    one, other = _any_place(random, value), _any_place(random, value)
    if len(one) <= len(other):
        return _put(value, other, copy.deepcopy(_get(value, one)))
    return value


CHANGES = (other_value, odd_literal, without, unknown_key, repeated, swapped)


def truncated(random, data):
    return data[: random.randrange(len(data) + 1)]


def flipped(random, data):
    changed = bytearray(data)
    for _ in range(random.randint(1, 5)):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def not_utf8(_random, data):
    return data.replace(b"a", b"\xff", 1)


def other_encoding(random, data):
    encoding = random.choice(("utf-16", "utf-32", "utf-8-sig"))
    return data.decode("utf-8", "replace").encode(encoding)


def trailing(random, data):
    return data + random.choice((b"}", b"\x00", b" 1", b"{}", b"\n" * 5000))


DAMAGES = (truncated, flipped, not_utf8, other_encoding, trailing)
