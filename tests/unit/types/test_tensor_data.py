"""TensorData: what becomes what on the wire, and back (A1.3)."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinkex.errors import InputError
from tinkex.types import Datum, ModelInput, TensorData
from tinkex.types.tensor_data import PrecisionWarning

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        *((name, "float32") for name in ("float16", "float32", "float64")),
        *((name, "int64") for name in ("int8", "int16", "int32", "int64")),
        # a deliberate deviation: the official SDK refuses these
        *((name, "int64") for name in ("uint8", "uint16", "uint32", "uint64")),
    ],
)
def test_numpy_dtype_becomes_the_wire_dtype(dtype, expected):
    tensor = TensorData.from_numpy(np.asarray([1, 2, 3], dtype))
    assert tensor.dtype == expected
    assert tensor.tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", ["bool", "complex64", "U1", "O"])
def test_array_that_the_wire_has_no_type_for_is_refused(dtype):
    with pytest.raises(InputError, match=r"float32 and int64"):
        TensorData.from_numpy(np.asarray([1, 0], dtype))


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32)))
def test_float32_comes_back_exactly(array):
    back = TensorData.from_numpy(array).to_numpy()
    assert back.shape == array.shape
    assert np.array_equal(back, array, equal_nan=True)


@given(hnp.arrays(np.int64, SHAPES))
def test_int64_comes_back_exactly(array):
    assert np.array_equal(TensorData.from_numpy(array).to_numpy(), array)


def test_list_without_dtype_takes_the_kind_of_its_numbers():
    assert TensorData([1, 2]).dtype == "int64"
    assert TensorData([1.0, 2]).dtype == "float32"
    assert TensorData([]).dtype == "float32"


def test_given_dtype_converts():
    assert TensorData([1, 2], "float32").data == [1.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1, 2, 3], "int64", [2]), "fill the shape"),
        (([1], "int16"), "none of float32, int64"),
        (([[1], [1, 2]],), "differ in length"),
        ((["a"],), "cannot be sent"),
        (([1], "int64", [1, 1], [0, 1]), "needs both"),
        (([1], "int64", None, [0, 1], [0]), "2 dimensions"),
        (([1], "int64", [1, 2], [0, 1], [2]), "must lie in"),
        (([1], "int64", [2, 2], [0, 1], [0]), "must rise"),
        (([1], "int64", [1, 2], [0, 2], [0, 1]), "row pointers"),
        (([1, 2], "int64", [-1, -2]), "negative"),
        (([], "int64", [0, 10**30]), "No array"),
        (([1], "int64", [1] * 70), "No array"),
        (([1], "int64", "ab"), "whole numbers"),
        (([1], "int64", [None]), "whole numbers"),
        (([1], ["int64"]), "none of float32, int64"),
        (([2**63], "int64"), "does not fit into an int64"),
        (([2**80], "int64"), "cannot be sent"),
        (([float("nan")], "int64"), "NaN"),
        (([float("inf")], "int64"), "infinite"),
        (([1e19], "int64"), "beyond 64 bits"),
        (([], "int64", [-1, 5], [], []), "negative"),
        (([1], "int64", [1, 5], ["0", "1"], [0]), "whole numbers"),
        (([1], "int64", [1, 5], [[0], [1, 2]], [0]), "whole numbers"),
        (([1], "int64", [1, 5], [0, 1], [2**80]), "whole numbers"),
        (([1], "int64", [1, 5], [0, 1], [2**63]), "must lie in"),
    ],
)
def test_values_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        TensorData(*arguments)


def test_sparse_tensor_is_filled_with_the_pad_value():
    tensor = TensorData([5, 6], "int64", [2, 3], [0, 1, 2], [1, 2])
    assert tensor.tolist(pad_value=-1) == [[-1, 5, -1], [-1, -1, 6]]


@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)))
def test_sparse_form_holds_the_same_values_and_is_taken_when_smaller(array):
    tensor = TensorData.from_numpy(array)
    sparse = tensor.to_sparse()
    rows, columns = array.shape
    cost = rows + 1 + 2 * np.count_nonzero(array)
    assert sparse.is_sparse == (cost < rows * columns)
    assert np.array_equal(sparse.to_numpy(), array)


def test_few_bytes_of_a_sparse_tensor_cannot_ask_for_all_memory():
    with pytest.raises(InputError, match="too large when dense"):
        TensorData([], "int64", [1, 10**12], [0, 0], [])


@pytest.mark.parametrize("make", [TensorData.from_numpy, TensorData])
def test_array_that_its_owner_changes_later_changes_no_tensor(make):
    """A request is encoded after the call has returned; rollout code reuses its buffers."""
    array = np.asarray([1.0, 2.0], np.float32)
    tensor = make(array)
    array[0] = 9.0
    assert tensor.data == [1.0, 2.0]


def test_torch_tensor_that_its_owner_changes_later_changes_no_tensor():
    torch = pytest.importorskip("torch")
    source = torch.tensor([1.0, 2.0])
    tensor = TensorData.from_torch(source)
    source.mul_(5)
    assert tensor.data == [1.0, 2.0]


def test_read_only_bytes_are_not_copied():
    array = np.frombuffer(b"\0" * 16, "<f4")
    assert np.shares_memory(TensorData.from_numpy(array).values, array)


def test_strided_and_big_endian_arrays_are_read_by_value():
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    tensor = TensorData.from_numpy(array)
    assert tensor.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_sparse_indices_read_as_lists_and_as_arrays():
    tensor = TensorData([5, 6], "int64", [2, 3], [0, 1, 2], [1, 2])
    crow, col = tensor.sparse_indices
    assert (tensor.sparse_crow_indices, tensor.sparse_col_indices) == ([0, 1, 2], [1, 2])
    assert (crow.tolist(), col.tolist()) == ([0, 1, 2], [1, 2])
    assert TensorData([1]).sparse_indices is None
    assert pickle.loads(pickle.dumps(tensor)) == tensor
    assert tensor != TensorData([5, 6], "int64", [2, 3], [0, 1, 2], [1, 1])
    assert tensor != TensorData([5, 6], "int64", [2])


def test_tensor_is_immutable():
    tensor = TensorData([1])
    with pytest.raises(AttributeError, match="immutable"):
        tensor.dtype = "float32"
    with pytest.raises(AttributeError, match="immutable"):
        del tensor.shape


def test_copies_are_equal_and_nan_equals_nan():
    tensor = TensorData(np.asarray([[1.0, np.nan]], np.float32))
    assert pickle.loads(pickle.dumps(tensor)) == tensor
    assert copy.deepcopy(tensor) == tensor
    assert tensor != TensorData([1.0, np.nan])
    assert tensor != 5


def test_buffer_is_wrapped_and_checked():
    assert TensorData.from_buffer(b"\x01\0\0\0\0\0\0\0", "int64", None).data == [1]
    with pytest.raises(InputError, match="whole number"):
        TensorData.from_buffer(b"\0" * 5, "int64", None)


def test_repr_shows_no_values():
    assert repr(TensorData([1, 2])) == "TensorData(int64, shape=[2])"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", "float32"), ("float64", "float32"), ("bfloat16", "float32"), ("int32", "int64")],
)
def test_torch_tensor_becomes_the_wire_dtype(dtype, expected):
    torch = pytest.importorskip("torch")
    tensor = TensorData.from_torch(torch.tensor([1, 2], dtype=getattr(torch, dtype)))
    assert tensor.dtype == expected
    assert tensor.to_torch().tolist() == [1, 2]


def test_torch_copy_shares_no_memory():
    torch = pytest.importorskip("torch")
    tensor = TensorData([1.0, 2.0])
    tensor.to_torch().mul_(5)
    assert tensor.data == [1.0, 2.0]
    assert torch.equal(tensor.to_torch(), torch.tensor([1.0, 2.0]))


def test_torch_matrix_becomes_sparse_when_smaller():
    torch = pytest.importorskip("torch")
    matrix = torch.zeros(4, 10)
    matrix[1, 2] = 3.0
    tensor = TensorData.from_torch_sparse(matrix)
    assert tensor.is_sparse
    assert torch.equal(tensor.to_torch(), matrix)


@pytest.mark.parametrize("shape", [(), (30,), (2, 3, 5)])
def test_torch_tensor_that_is_no_matrix_stays_dense(shape):
    """As with the official SDK: programs convert whatever they have by the same call."""
    torch = pytest.importorskip("torch")
    tensor = TensorData.from_torch_sparse(torch.zeros(shape))
    assert not tensor.is_sparse
    assert tensor.dimensions == shape


@pytest.mark.parametrize(
    ("values", "dtype", "words"),
    [
        (np.array([1.0, 1e300]), "float32", "1e.300, which becomes inf .1 values"),
        (np.array([1e-60]), "float32", "becomes 0.0"),
        (np.array([2**24 + 1, 2**24 + 3]), "float32", "16777217, .* .2 values"),
        (np.array([1.0, 2.9]), "int64", "fractions are cut off: 2.9 becomes 2"),
    ],
)
def test_more_than_rounding_is_told_with_the_first_value(values, dtype, words):
    with pytest.warns(PrecisionWarning, match=words):
        TensorData(values, dtype)


def test_lists_and_torch_tensors_are_told_of_too():
    with pytest.warns(PrecisionWarning, match=r"2\.9"):
        Datum(ModelInput.from_ints([1]), {"target_tokens": [2.9]})
    with pytest.warns(PrecisionWarning, match="inf"):
        Datum(ModelInput.from_ints([1]), {"weights": [1e300]})
    torch = pytest.importorskip("torch")
    with pytest.warns(PrecisionWarning, match="inf"):
        TensorData.from_torch(torch.tensor([1e300], dtype=torch.float64))


def test_warning_names_the_line_that_made_the_tensor():
    with pytest.warns(PrecisionWarning) as caught:
        Datum(ModelInput.from_ints([1]), {"target_tokens": [2.9]})
    assert caught[0].filename == __file__


@given(hnp.arrays(np.float64, 5, elements=st.floats(-1e30, 1e30).filter(lambda x: abs(x) < 1e7)))
def test_rounding_alone_is_not_told(array):
    array = np.where(np.abs(array) < 1e-30, 0.0, array)
    TensorData(array)  # a warning would fail the test


def test_special_values_and_widening_are_not_told():
    TensorData(np.array([np.nan, np.inf, -0.0]))
    TensorData(np.array([1e38, 2.0**24 + 1]))  # of floats this is rounding
    TensorData(np.array([65504.0], np.float16))
    TensorData(np.array([1.0, 2.0]), "int64")
    TensorData(np.array([3], ">i8"))


def test_numbers_of_json_are_rounded_without_a_word():
    """A server's log is not the place to tell a client of its own numbers."""
    tensor = TensorData.from_wire({"data": [1e-300, 0.1, 1e300], "dtype": "float32"})
    assert tensor.data == [0.0, np.float32(0.1), np.inf]
    assert TensorData.from_wire({"data": [1e-300, 1.0]}).data == [0.0, 1.0]
    assert TensorData.from_wire({"data": [2.0, 3], "dtype": "int64"}).data == [2, 3]
    assert TensorData.from_wire({"data": [[1, 2], [3, 4]], "shape": [2, 2]}).data == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": [2.5], "dtype": "int64"}, "fractions"),
        ({"data": [1e30], "dtype": "int64"}, "int64"),
        ({"data": [float("nan")], "dtype": "int64"}, "NaN"),
        ({"data": ["1"], "dtype": "float32"}, "numbers"),
        ({"data": [True], "dtype": "float32"}, "numbers"),
        ({"data": [2**70], "dtype": "float32"}, "numbers"),
        ({"data": [[1], [2, 3]], "dtype": "float32"}, "no array"),
        ({"data": {"a": 1}, "dtype": "float32"}, "numbers"),
        ({"data": [1], "colour": 1}, "no field colour"),
        ({"data": [1], "dtype": "int7"}, "int7"),
        ({"data": [1], "dtype": ["float32"]}, "float32"),
    ],
)
def test_json_that_is_no_tensor_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        TensorData.from_wire(fields)
