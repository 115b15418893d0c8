"""Arrays between bytes and NumPy: the part of the protobuf codec that touches every token."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tinkex.errors import InputError
from tinkex.types import TensorData
from tinkex.types.tensor_data import NUMPY_DTYPES, TensorDtype
from tinkex.wire import tinkex_public_pb2 as pb

DTYPE_CODES: dict[TensorDtype, pb.DType] = {
    "float32": pb.DTYPE_FLOAT32,
    "int64": pb.DTYPE_INT64,
}

_INT64 = np.dtype("<i8")
_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")


def from_bytes(buffer: bytes, dtype: np.dtype[Any], what: str) -> npt.NDArray[Any]:
    """Wrap little-endian bytes without a copy.

    Raises:
        InputError: when they are no whole number of elements.
    """
    if len(buffer) % dtype.itemsize:
        raise InputError(f"{what}: {len(buffer)} bytes are no whole number of {dtype} values.")
    return np.frombuffer(buffer, dtype)


def decode_values(buffer: bytes, code: int, what: str) -> npt.NDArray[Any]:
    """Return values as float32 or int64; bfloat16 and int32 are widened, which is exact.

    Raises:
        InputError: for an unknown dtype code or a broken length.
    """
    if code == pb.DTYPE_FLOAT32:
        return from_bytes(buffer, _FLOAT32, what)
    if code == pb.DTYPE_INT64:
        return from_bytes(buffer, _INT64, what)
    if code == pb.DTYPE_INT32:
        return from_bytes(buffer, _INT32, what).astype(_INT64)
    if code == pb.DTYPE_BFLOAT16:
        halves = from_bytes(buffer, np.dtype("<u2"), what)
        return (halves.astype("<u4") << 16).view(_FLOAT32)
    raise InputError(f"{what}: the dtype code {code} is not known.")


def encode_tensor(tensor: TensorData, message: pb.Tensor) -> None:
    """Write a dense or sparse tensor into `message`."""
    message.dtype = DTYPE_CODES[tensor.dtype]
    message.shape.extend(tensor.dimensions)
    values = np.ascontiguousarray(tensor.values, NUMPY_DTYPES[tensor.dtype]).tobytes()
    if tensor.sparse_crow_indices is None or tensor.sparse_col_indices is None:
        message.dense = values
        return
    message.sparse_csr.values = values
    message.sparse_csr.crow_indices = np.asarray(tensor.sparse_crow_indices, _INT64).tobytes()
    message.sparse_csr.col_indices = np.asarray(tensor.sparse_col_indices, _INT64).tobytes()


def decode_tensor(message: pb.Tensor, what: str) -> TensorData:
    """Read a tensor; `what` names it in an error.

    Raises:
        InputError: when bytes, dtype and shape do not fit together.
    """
    shape = list(message.shape) or None
    if shape is not None and min(shape) < 0:
        raise InputError(f"{what}: the shape {shape} has a negative dimension.")
    try:
        if message.WhichOneof("encoding") == "sparse_csr":
            sparse = message.sparse_csr
            return TensorData(
                decode_values(sparse.values, message.dtype, what),
                shape=shape,
                sparse_crow_indices=from_bytes(sparse.crow_indices, _INT64, what).tolist(),
                sparse_col_indices=from_bytes(sparse.col_indices, _INT64, what).tolist(),
            )
        return TensorData(decode_values(message.dense, message.dtype, what), shape=shape)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(what) else f"{what}: {text}") from None


def int32_bytes(values: Any) -> bytes:
    """Return values as int32 bytes."""
    return np.ascontiguousarray(values, _INT32).tobytes()


def float32_bytes(values: Any) -> bytes:
    """Return values as float32 bytes."""
    return np.ascontiguousarray(values, _FLOAT32).tobytes()


def int32_array(buffer: bytes, what: str) -> npt.NDArray[np.int32]:
    """Read int32 values without a copy."""
    return from_bytes(buffer, _INT32, what)


def own_int32_array(buffer: bytes, what: str) -> npt.NDArray[np.int32]:
    """Read int32 values into memory of their own, which may be written into."""
    return from_bytes(buffer, _INT32, what).copy()


def own_float32_array(buffer: bytes, what: str) -> npt.NDArray[np.float32]:
    """Read float32 values into memory of their own, which may be written into."""
    return from_bytes(buffer, _FLOAT32, what).copy()


def own_tensor(message: pb.Tensor, what: str) -> TensorData:
    """Read a tensor as `decode_tensor` does, into memory that may be written into."""
    tensor = decode_tensor(message, what)
    if tensor.is_sparse:
        return tensor  # what is made dense of it is fresh
    return TensorData.of_checked(tensor.values.copy(), tensor.shape)
