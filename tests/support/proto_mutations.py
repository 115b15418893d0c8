"""Mutations of valid forward_backward messages: each damages one thing, the bytes or their meaning.

Owns what is made of a message. Every choice comes from the `random.Random` that is passed in, so a
case is known by its seed and number.
"""

from __future__ import annotations

import struct

import numpy as np

from tinkex.wire import tinkex_public_pb2 as pb

LOSSES = (
    "cross_entropy",
    "importance_sampling",
    "ppo",
    "cispo",
    "dro",
    "gspo",
    "stable_reinforce",
    "custom",
)
INPUTS = ("weights", "advantages", "logprobs")
HUGE = (2**15, 2**28, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)
WORDS = (
    "",
    " ",
    "x" * 10_000,
    "\x00",
    "../../etc/passwd",
    "tinker://a/b/c",
    "ﷺ\u202e",
    "{}",
    "%2e%2e",
)
FLOATS = (float("nan"), float("inf"), float("-inf"), 3.4e38, -3.4e38, 1e-45, -0.0, 0.0)


def valid_request(random, model_id, seq_id, *, vocab):
    """A message that the server takes."""
    loss = random.choice(("cross_entropy", "importance_sampling", "ppo", "cispo"))
    message = pb.ForwardBackwardRequest(
        model_id=model_id, seq_id=seq_id, loss_fn=loss, forward_only=random.random() < 0.3
    )
    for _ in range(random.randint(1, 3)):
        count = random.randint(1, 12)
        datum = message.data.add()
        tokens = np.array([random.randrange(vocab) for _ in range(count)], "<i4")
        datum.model_input.add().encoded_text.tokens = tokens.tobytes()
        _dense(datum.loss_fn_inputs["target_tokens"], tokens.astype("<i8"), pb.DTYPE_INT64)
        for name in ("weights",) if loss == "cross_entropy" else ("advantages", "logprobs"):
            values = np.array([-random.random() for _ in range(count)], "<f4")
            _dense(datum.loss_fn_inputs[name], values, pb.DTYPE_FLOAT32)
    return message


def mutated(random, message):
    """A mutation of a message's bytes or meaning: (its name, the bytes)."""
    names = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        mutation = random.choice(MEANINGS)
        names.append(mutation.__name__)
        mutation(random, message)
    body = message.SerializeToString()
    if random.random() < 0.35:
        damage = random.choice(DAMAGES)
        names.append(damage.__name__)
        body = damage(random, body)
    return "+".join(names), body


def _dense(tensor, values, dtype):
    tensor.dense, tensor.dtype = values.tobytes(), dtype
    del tensor.shape[:]
    tensor.shape.append(len(values))


def _datum(random, message):
    return random.choice(message.data) if message.data else message.data.add()


def _tensor(random, message):
    inputs = _datum(random, message).loss_fn_inputs
    return inputs[random.choice(sorted(inputs) or ["weights"])]


# --- what it means ------------------------------------------------------------------------------


def wrong_dtype(random, message):
    _tensor(random, message).dtype = random.choice((0, 1, 2, 3, 4, 5, 77, -1))


def lying_shape(random, message):
    tensor = _tensor(random, message)
    del tensor.shape[:]
    dims = random.choice(
        (
            [random.randrange(50)],
            [-1],
            [0],
            [0, 2**62],
            [random.choice(HUGE)],
            [random.choice(HUGE), random.choice(HUGE)],
            [1] * random.choice((2, 40, 2000)),
            [-(2**63)],
            [2, 2],
        )
    )
    tensor.shape.extend(dims)


def lying_bytes(random, message):
    tensor = _tensor(random, message)
    tensor.dense = tensor.dense[: random.randrange(len(tensor.dense) + 1)] + bytes(
        random.randrange(9)
    )


def sparse(random, message):
    tensor = _tensor(random, message)
    rows, cols = random.randrange(6), random.randrange(6)
    count = random.randrange(6)
    crow = sorted(random.randrange(count + 1) for _ in range(rows + 1))
    if random.random() < 0.5:
        crow = [random.choice((0, -1, 5, 2**40, -(2**63))) for _ in range(random.randrange(8))]
    columns = [random.choice((0, 1, cols, -1, 2**33, 2**63 - 1)) for _ in range(count)]
    csr = tensor.sparse_csr
    csr.crow_indices = struct.pack(f"<{len(crow)}q", *crow)
    csr.col_indices = struct.pack(f"<{len(columns)}q", *columns)
    csr.values = bytes(random.choice((4, 8)) * random.choice((count, count + 1)))
    del tensor.shape[:]
    tensor.shape.extend(
        random.choice(([rows, cols], [], [rows], [2**31, 2**31], [-1, cols], [rows, cols, 1]))
    )


def odd_numbers(random, message):
    tensor = _tensor(random, message)
    count = len(tensor.dense) // 4
    values = [random.choice((*FLOATS, -0.5, 1.0)) for _ in range(count)]
    _dense(tensor, np.array(values, "<f4"), pb.DTYPE_FLOAT32)


def odd_targets(random, message):
    tensor = _datum(random, message).loss_fn_inputs["target_tokens"]
    count = max(1, len(tensor.dense) // 8)
    values = [
        random.choice((0, 1, -1, -100, 10**6, 2**31, 2**63 - 1, -(2**63))) for _ in range(count)
    ]
    _dense(tensor, np.array(values, "<i8"), pb.DTYPE_INT64)


def odd_tokens(random, message):
    datum = _datum(random, message)
    values = [
        random.choice((0, 5, -1, 10**6, 2**31 - 1, -(2**31))) for _ in range(random.randrange(9))
    ]
    datum.model_input.add().encoded_text.tokens = np.array(values, "<i4").tobytes()


def torn_tokens(random, message):
    _datum(random, message).model_input.add().encoded_text.tokens = bytes(random.randrange(1, 4))


def long_sequence(random, message):
    count = random.choice((500, 20_000))
    datum = _datum(random, message)
    datum.model_input.add().encoded_text.tokens = bytes(4 * count)


def other_chunks(random, message):
    chunk = _datum(random, message).model_input.add()
    kind = random.randrange(4)
    if kind == 0:
        chunk.image.data, chunk.image.format = b"x", random.choice(("png", "gif", *WORDS))
        chunk.image.expected_tokens = random.choice((0, 5, -1, 2**31 - 1))
        chunk.image.override_dimensions.width = 2**32 - 1
    elif kind == 1:
        chunk.dmel.dmel = bytes(random.randrange(50))
    elif kind == 2:
        chunk.encoded_text.SetInParent()


def many_chunks(random, message):
    datum = _datum(random, message)
    for _ in range(random.choice((50, 3000))):
        datum.model_input.add().encoded_text.SetInParent()


def no_input(random, message):
    _datum(random, message).ClearField("model_input")


def no_data(_random, message):
    del message.data[:]


def many_data(random, message):
    for _ in range(random.choice((100, 2000))):
        message.data.add()


def other_inputs(random, message):
    inputs = _datum(random, message).loss_fn_inputs
    _dense(inputs[random.choice((*INPUTS, *WORDS, "mask", "rewards"))], np.zeros(3, "<f4"), 1)


def giant_inputs(random, message):
    inputs = _datum(random, message).loss_fn_inputs
    for number in range(random.choice((100, 3000))):
        inputs[f"input{number}"].dtype = 1


def missing_input(random, message):
    inputs = _datum(random, message).loss_fn_inputs
    if inputs:
        del inputs[random.choice(sorted(inputs))]


def other_loss(random, message):
    message.loss_fn = random.choice((*LOSSES, *WORDS, "mse", "CROSS_ENTROPY"))


def loss_config(random, message):
    names = ("clip_low_threshold", "clip_high_threshold", "beta", "loss_id", "kl_coeff", "x", "")
    for _ in range(random.randint(1, 3)):
        name = random.choice(names)
        kind = random.randrange(4)
        if kind == 0:
            message.loss_fn_config[name] = random.choice((*FLOATS, 0.2, -1.0))
        elif kind == 1:
            message.loss_fn_config_v2[name].number = random.choice((*FLOATS, 0.2))
        elif kind == 2:
            message.loss_fn_config_v2[name].text = random.choice(WORDS)
        else:
            message.loss_fn_config_v2[name].SetInParent()


def giant_config(random, message):
    for number in range(random.choice((100, 5000))):
        message.loss_fn_config[f"setting{number}"] = number


def spans(random, message):
    datum = _datum(random, message)
    sides = random.choice(([datum.model_input_spans], [datum.loss_fn_input_spans])) or []
    if random.random() < 0.5:
        sides = [datum.model_input_spans, datum.loss_fn_input_spans]
    for side in sides:
        for _ in range(random.randint(1, 3)):
            span = side.add()
            kind = random.choice((span.prompt_tokens, span.sampled_tokens, None))
            if kind is not None:
                kind.sequence_id = random.choice((*WORDS, "sess-x:sample:0:0:0"))
                kind.offset = random.choice((0, -1, 2**62))
                kind.length = random.choice((0, 1, -1, 2**63 - 1))


def other_model(random, message):
    message.model_id = random.choice((*WORDS, "sess-x:train:0", f"{message.model_id}0"))


def other_sequence_id(random, message):
    message.seq_id = random.choice((0, -1, -(2**31), message.seq_id - 1, message.seq_id + 3))


MEANINGS = (
    wrong_dtype,
    lying_shape,
    lying_bytes,
    sparse,
    odd_numbers,
    odd_targets,
    odd_tokens,
    torn_tokens,
    long_sequence,
    other_chunks,
    many_chunks,
    no_input,
    no_data,
    many_data,
    other_inputs,
    giant_inputs,
    missing_input,
    other_loss,
    loss_config,
    giant_config,
    spans,
    other_model,
    other_sequence_id,
)


# --- its bytes ----------------------------------------------------------------------------------


def truncated(random, body):
    return body[: random.randrange(len(body) + 1)]


def flipped(random, body):
    data = bytearray(body)
    for _ in range(random.randint(1, 8)):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def spliced(random, body):
    place = random.randrange(len(body) + 1)
    junk = random.randbytes(random.randrange(40))
    return body[:place] + junk + body[place:]


def doubled(random, body):
    return body * random.choice((2, 3))


def unknown_field(random, body):
    number = random.choice((8, 15, 16, 1000, 2**29 - 1))
    return body + _varint(number << 3 | 2) + _varint(3) + b"abc"


def nested_groups(random, body):
    depth = random.choice((10, 99, 101, 5000))
    return body + _varint(20 << 3 | 3) * depth + _varint(20 << 3 | 4) * depth


def endless_length(random, body):
    return body + _varint(3 << 3 | 2) + _varint(random.choice(HUGE))


def overlong_varint(random, body):
    return body + b"\x10" + b"\xff" * random.choice((9, 10, 11)) + b"\x01"


def not_text(_random, body):
    return body + b"\x0a\x02\xff\xfe"


DAMAGES = (
    truncated,
    flipped,
    spliced,
    doubled,
    unknown_field,
    nested_groups,
    endless_length,
    overlong_varint,
    not_text,
)


def _varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
