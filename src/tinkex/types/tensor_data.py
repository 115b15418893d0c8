"""TensorData: a dense or sparse array as it travels. Owns the dtype rules of the wire."""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from tinkex.errors import InputError

if TYPE_CHECKING:
    import torch

TensorDtype = Literal["int64", "float32"]

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "int64": np.dtype("<i8"),
    "float32": np.dtype("<f4"),
}
"""The two element types of the wire, little endian."""

MAX_DENSE_ELEMENTS = 2**28
"""A sparse tensor that would be larger than this when dense (2 GiB of int64) is refused: its few
bytes could otherwise take all memory of who reads it."""


_WHOLE_NUMBERS = {"type": ["array", "null"], "items": {"type": "integer", "minimum": 0}}

TENSOR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "data": {"type": "array", "items": {"type": "number"}},
        "dtype": {"enum": ["int64", "float32"]},
        "shape": _WHOLE_NUMBERS,
        "sparse_crow_indices": _WHOLE_NUMBERS,
        "sparse_col_indices": _WHOLE_NUMBERS,
    },
    "required": ["data"],
    "additionalProperties": False,
}
"""The JSON schema of a tensor; the values of a dense one may be nested as its shape is."""


class PrecisionWarning(UserWarning):
    """A tensor lost more than rounding on its way into float32 or int64."""


_INT64_MAX = np.iinfo(np.int64).max


def wire_dtype(dtype: np.dtype[Any]) -> TensorDtype:
    """Return the wire's element type for a NumPy one.

    Every float becomes float32, every integer int64. Unsigned integers are accepted too, which
    the official SDK refuses (docs/deviations.md).

    Raises:
        InputError: for booleans, complex numbers, strings and objects.
    """
    if dtype.kind == "f":
        return "float32"
    if dtype.kind in "iu":
        return "int64"
    raise InputError(
        f"An array of dtype {dtype} cannot be sent: the wire has float32 and int64. "
        "Convert it first, for example with .astype(np.float32)."
    )


def _converted(values: Any, dtype: TensorDtype | None) -> npt.NDArray[Any]:
    """Return `values` as a flat array of one of the wire's dtypes, which nobody else writes into.

    A request is encoded after the call that makes it has returned, so an array that the caller
    may still write into is copied; a read-only one (decoded bytes) is not.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"The rows of a tensor differ in length: {error}") from error
    natural = wire_dtype(array.dtype)
    chosen = natural if dtype is None else dtype
    if not isinstance(chosen, str) or chosen not in NUMPY_DTYPES:
        raise InputError(f"dtype {chosen!r} is none of float32, int64.")
    if chosen == "int64":
        _check_fits_int64(array)
    with np.errstate(over="ignore"):  # told below, for every platform alike
        flat = array.astype(NUMPY_DTYPES[chosen], copy=False).reshape(-1)
    _warn_of_loss(array.reshape(-1), flat)
    is_fresh = isinstance(values, list | tuple | range)
    if not is_fresh and flat.flags.writeable and np.may_share_memory(flat, array):
        return flat.copy()
    return flat


def _numbers(data: Any, dtype: Any) -> npt.NDArray[Any]:
    """Return JSON's numbers in the precision of `dtype`, flat or as they are nested."""
    try:
        array = np.asarray([] if data is None else data)
    except (ValueError, OverflowError) as error:
        raise InputError(f"The data of a tensor is no array of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise InputError("The data of a tensor must be numbers.")
    if dtype == "float32" or (dtype is None and array.dtype.kind == "f"):
        with np.errstate(over="ignore", under="ignore"):
            return array.astype(np.float32)
    if dtype == "int64" and array.dtype.kind == "f":
        _check_fits_int64(array)
        if (array != np.trunc(array)).any():
            raise InputError("An int64 tensor has fractions in its data: give whole numbers.")
    return array


def _check_fits_int64(array: npt.NDArray[Any]) -> None:
    """Refuse what a cast would turn into other numbers: NaN, infinities, 2**63 and above."""
    kind = array.dtype.kind
    if kind == "f" and not np.all(np.abs(array) < 2.0**63):
        raise InputError("A value that is NaN, infinite or beyond 64 bits cannot become an int64.")
    if kind == "u" and array.itemsize == 8 and array.size and array.max() > _INT64_MAX:
        raise InputError(f"The value {array.max()} does not fit into an int64.")


def _warn_of_loss(given: npt.NDArray[Any], kept: npt.NDArray[Any]) -> None:
    """Warn when narrowing lost more than rounding: a range, a fraction, or a whole number."""
    widened = given.dtype.kind == kept.dtype.kind and given.itemsize <= kept.itemsize
    if widened or not given.size:
        return
    if kept.dtype.kind == "i":
        if given.dtype.kind == "f" and (given != kept).any():
            _warn(f"fractions are cut off: {given[given != kept][0]} becomes", kept[given != kept])
        return
    changed = given != kept
    if given.dtype.kind == "f":
        changed &= np.isfinite(given) & (np.isinf(kept) | (kept == 0))
    if changed.any():
        _warn(f"float32 cannot hold {given[changed][0]}, which becomes", kept[changed])


def _warn(what: str, became: npt.NDArray[Any]) -> None:
    message = f"A tensor loses precision on the wire: {what} {became[0]} ({became.size} values)."
    warnings.warn(message, PrecisionWarning, stacklevel=_caller_level())


def _caller_level() -> int:
    """The frame that called this package, so that each of its lines is told once."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001 - as warnings itself does
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("tinkex."):
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    return level


def _checked_shape(shape: Sequence[int]) -> list[int]:
    try:
        dimensions = [operator.index(size) for size in shape]
    except TypeError as error:
        raise InputError(f"A shape is a list of whole numbers, not {shape!r}.") from error
    if any(size < 0 for size in dimensions):
        raise InputError(f"The shape {dimensions} has a negative dimension.")
    return dimensions


def _index_array(values: Any, name: str) -> npt.NDArray[np.int64]:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{name} must be a flat list of whole numbers: {error}") from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"{name} must be a flat list of whole numbers.")
    return array.astype("<i8", copy=array.flags.writeable)


class TensorData:
    """An array of float32 or int64, dense or in compressed sparse rows. Immutable.

    Args:
        data: the values, flat, or of the shape given; for a sparse tensor the stored values.
        dtype: `float32` or `int64`; None takes it from `data`.
        shape: dimensions; None means one dimension for dense data.
        sparse_crow_indices: row pointers [rows + 1] of a sparse tensor.
        sparse_col_indices: column of each stored value [nnz].

    An array that the caller may still write into is copied.

    Raises:
        InputError: when the values do not fit the shape, or have another kind of dtype.
    """

    __slots__ = ("_sparse", "_values", "dtype", "shape")

    _values: npt.NDArray[Any]
    _sparse: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None
    dtype: TensorDtype
    shape: list[int] | None

    def __init__(
        self,
        data: Sequence[int] | Sequence[float] | npt.NDArray[Any] | None = None,
        dtype: TensorDtype | None = None,
        shape: Sequence[int] | None = None,
        sparse_crow_indices: Sequence[int] | npt.NDArray[Any] | None = None,
        sparse_col_indices: Sequence[int] | npt.NDArray[Any] | None = None,
    ) -> None:
        values = _converted([] if data is None else data, dtype)
        name: TensorDtype = "float32" if values.dtype.kind == "f" else "int64"
        given = _checked_shape(shape) if shape is not None else None
        if given is None and isinstance(data, np.ndarray) and data.ndim != 1:
            given = list(data.shape)
        sparse = None
        if sparse_crow_indices is not None and sparse_col_indices is not None:
            crow = _index_array(sparse_crow_indices, "sparse_crow_indices")
            col = _index_array(sparse_col_indices, "sparse_col_indices")
            _check_sparse(given, crow, col, values.size)
            sparse = (crow, col)
        elif sparse_crow_indices is not None or sparse_col_indices is not None:
            raise InputError("A sparse tensor needs both sparse_crow_indices and _col_indices.")
        else:
            _check_dense(given, values)
        put = object.__setattr__
        put(self, "_values", values)
        put(self, "_sparse", sparse)
        put(self, "dtype", name)
        put(self, "shape", given)

    @classmethod
    def of_checked(cls, values: npt.NDArray[Any], shape: list[int] | None) -> Self:
        """Make a dense tensor of an array that is known to fit: flat, of one of the wire's dtypes.

        For the many small tensors of a batch; nothing is checked and nothing copied.
        """
        tensor = cls.__new__(cls)
        put = object.__setattr__
        put(tensor, "_values", values)
        put(tensor, "_sparse", None)
        put(tensor, "dtype", "float32" if values.dtype.kind == "f" else "int64")
        put(tensor, "shape", shape)
        return tensor

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        """Read the JSON form. What is no float32 is rounded without a word: JSON has one number.

        Raises:
            InputError: for unknown fields, or values that do not fit dtype or shape.
        """
        unknown = sorted(set(map(str, fields)) - set(TENSOR_SCHEMA["properties"]))
        if unknown:
            raise InputError(f"A tensor has no field {', '.join(unknown)}.")
        given = {**fields, "data": _numbers(fields.get("data"), fields.get("dtype"))}
        return cls(**given)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: a tensor may be shared."""
        raise AttributeError(f"TensorData is immutable: make a new one to change {name}.")

    def __delattr__(self, name: str) -> None:
        """Refuse: a tensor may be shared."""
        raise AttributeError(f"TensorData is immutable: cannot delete {name}.")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy through the constructor."""
        return type(self), (self._values, self.dtype, self.shape, *(self._sparse or ()))

    def __eq__(self, other: object) -> bool:
        """Compare dtype, shape, layout and values (NaN equals NaN)."""
        if not isinstance(other, TensorData):
            return NotImplemented
        return (
            self.dtype == other.dtype
            and self.dimensions == other.dimensions
            and _same_indices(self._sparse, other._sparse)
            and np.array_equal(self._values, other._values, equal_nan=self.dtype == "float32")
        )

    __hash__ = None  # type: ignore[assignment]  # equality by value, over arrays

    def __repr__(self) -> str:
        """Show dtype and shape; values may be many."""
        kind = "sparse " if self.is_sparse else ""
        return f"TensorData({kind}{self.dtype}, shape={list(self.dimensions)})"

    @classmethod
    def from_buffer(
        cls, buffer: bytes | memoryview, dtype: TensorDtype, shape: Sequence[int] | None
    ) -> Self:
        """Wrap little-endian bytes without a copy.

        Raises:
            InputError: when the bytes are no whole number of elements or do not fill `shape`.
        """
        kind = NUMPY_DTYPES[dtype]
        if len(buffer) % kind.itemsize:
            raise InputError(f"{len(buffer)} bytes are no whole number of {dtype} values.")
        return cls(np.frombuffer(buffer, kind), dtype, shape)

    @classmethod
    def from_numpy(cls, array: npt.NDArray[Any]) -> Self:
        """Take an array of any float or integer dtype; float64 narrows to float32."""
        return cls(array, wire_dtype(array.dtype), array.shape)

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> Self:
        """Take a torch tensor of any float or integer dtype (bfloat16 widens exactly)."""
        plain = tensor.detach().cpu()
        if plain.is_floating_point() and plain.element_size() < 4:
            plain = plain.float()  # NumPy has no bfloat16
        return cls.from_numpy(plain.numpy())

    @classmethod
    def from_torch_sparse(cls, tensor: torch.Tensor, pad_value: int = 0) -> Self:
        """Store a 2-D tensor as sparse rows, leaving `pad_value` out, if that is smaller.

        The rule is the official one: sparse when (rows + 1) + 2 nnz < rows * columns. A tensor of
        another number of dimensions stays dense.
        """
        dense = cls.from_torch(tensor)
        return dense.to_sparse(pad_value) if len(dense.dimensions) == 2 else dense

    def to_sparse(self, pad_value: int = 0) -> Self:
        """Return this 2-D tensor as sparse rows where that is smaller, else itself."""
        rows, columns = self.dimensions
        matrix = self._values.reshape(rows, columns)
        kept = matrix != pad_value
        count = int(np.count_nonzero(kept))
        if (rows + 1) + 2 * count >= rows * columns:
            return self
        crow = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
        row_columns = np.nonzero(kept)[1]
        return type(self)(matrix[kept], self.dtype, [rows, columns], crow, row_columns)

    @property
    def values(self) -> npt.NDArray[Any]:
        """The stored values, flat, float32 or int64. Do not write into it."""
        return self._values

    @property
    def data(self) -> list[int] | list[float]:
        """The stored values as a flat list."""
        return self._values.tolist()  # type: ignore[no-any-return]  # numpy types it as Any

    @property
    def is_sparse(self) -> bool:
        """Whether the values are sparse rows."""
        return self._sparse is not None

    @property
    def sparse_indices(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
        """Row pointers [rows + 1] and columns [nnz], int64; None when dense. Do not write."""
        return self._sparse

    @property
    def sparse_crow_indices(self) -> list[int] | None:
        """The row pointers as a list; None when dense."""
        return None if self._sparse is None else self._sparse[0].tolist()

    @property
    def sparse_col_indices(self) -> list[int] | None:
        """The column of each stored value as a list; None when dense."""
        return None if self._sparse is None else self._sparse[1].tolist()

    @property
    def dimensions(self) -> tuple[int, ...]:
        """The shape; one dimension where none was given."""
        return tuple(self.shape) if self.shape is not None else (self._values.size,)

    def to_numpy(self, pad_value: int = 0) -> npt.NDArray[Any]:
        """Return a dense array; positions a sparse tensor leaves out hold `pad_value`."""
        if self._sparse is None:
            return self._values.reshape(self.dimensions)
        crow, col = self._sparse
        dense = np.full(self.dimensions, pad_value, dtype=self._values.dtype)
        dense[np.repeat(np.arange(len(crow) - 1), np.diff(crow)), col] = self._values
        return dense

    def to_torch(self, pad_value: int = 0) -> torch.Tensor:
        """Return a dense torch tensor of its own memory."""
        import torch  # noqa: PLC0415 - the client runs without torch

        return torch.from_numpy(self.to_numpy(pad_value).copy())

    def tolist(self, pad_value: int = 0) -> list[Any]:
        """Return nested lists in the tensor's shape."""
        return self.to_numpy(pad_value).tolist()  # type: ignore[no-any-return]  # as data


def _same_indices(
    a: tuple[npt.NDArray[Any], ...] | None, b: tuple[npt.NDArray[Any], ...] | None
) -> bool:
    if a is None or b is None:
        return a is b
    return all(map(np.array_equal, a, b))


def _check_dense(shape: list[int] | None, values: npt.NDArray[Any]) -> None:
    if shape is None:
        return
    if math.prod(shape) != values.size:
        raise InputError(f"{values.size} values do not fill the shape {shape}.")
    try:
        values.reshape(shape)
    except ValueError as error:  # too many dimensions, or 0 x a number no array can have
        raise InputError(f"No array can have the shape {shape}: {error}") from error


def _check_sparse(
    shape: Sequence[int] | None,
    crow: npt.NDArray[np.int64],
    col: npt.NDArray[np.int64],
    count: int,
) -> None:
    if shape is None or len(shape) != 2:
        raise InputError("A sparse tensor needs a shape of 2 dimensions.")
    rows, columns = shape
    if rows * columns > MAX_DENSE_ELEMENTS:
        raise InputError(f"A sparse tensor of shape {list(shape)} is too large when dense.")
    if len(crow) != rows + 1 or crow[0] != 0 or np.any(crow[1:] < crow[:-1]):
        raise InputError(f"sparse_crow_indices must rise from 0 over {rows + 1} entries.")
    if crow[-1] != count or len(col) != count:
        raise InputError(f"{count} sparse values need {count} columns and row pointers up to it.")
    if count and (col.min() < 0 or col.max() >= columns):
        raise InputError(f"sparse_col_indices must lie in 0..{columns - 1}.")
