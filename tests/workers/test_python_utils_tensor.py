"""``pb_utils.Tensor``: DLPack both ways, what is lent, what is copied, and what nobody can write to."""

import copy
import gc
import multiprocessing
import sys
import weakref
from typing import Any

import numpy as np
import pytest

from conch import tensors
from conch.messages import Block
from conch.requester.inference import OutputTensor
from shm.lent import Lent
from workers.backends.base import Input
from workers.python_utils import dlpack
from workers.python_utils import triton_python_backend_utils as pb_utils
from workers.python_utils.tensor import Tensor, input_tensor, output_tensor, read_only_input_tensor

DTYPES = [np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
DTYPES += [np.float16, np.float32, np.float64]


class Segment:
    number = 7
    nbytes = 4096
    descriptor = 0


class Hold:
    pass


def lent(nbytes: int, hold: object = None) -> Lent:
    return Lent(Block(7, 64, nbytes), Segment(), hold)


def ints(count: int) -> bytes:
    return np.arange(count, dtype=np.int32).tobytes()


# -------------------------------------------------------------------------------------------------------- DLPack


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_to_dlpack_and_back_shares_its_memory(dtype: Any) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    back = Tensor.from_dlpack("b", Tensor("a", array).to_dlpack())
    assert back.as_numpy().dtype == dtype and back.shape() == [2, 3]
    assert np.array_equal(back.as_numpy(), array)
    back.as_numpy()[0, 0] = 1
    assert array[0, 0] == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_reads_a_tensor(dtype: Any) -> None:
    array = np.array([1, 0, 1], dtype)
    assert np.array_equal(np.from_dlpack(Tensor("a", array)), array)  # type: ignore[arg-type]


def test_bf16_goes_both_ways() -> None:
    patterns = np.array([0x3F80, 0x4000], np.uint16)
    tensor = Tensor.from_dlpack("a", dlpack.capsule_of(patterns, True))
    assert tensor.triton_dtype() == 14 and tensor.shape() == [2]
    again = Tensor.from_dlpack("b", tensor)
    assert again.triton_dtype() == 14
    assert bytes(again._as_input(True).data) == patterns.tobytes()
    with pytest.raises(pb_utils.TritonModelException, match="BF16"):
        again.as_numpy()


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1)])
def test_shapes_at_the_edge(shape: tuple[int, ...]) -> None:
    back = Tensor.from_dlpack("b", Tensor("a", np.ones(shape, np.float32)).to_dlpack())
    assert back.as_numpy().shape == shape and back.shape() == list(shape)


def test_an_array_that_must_not_be_written_to() -> None:
    array = np.arange(3)
    array.flags.writeable = False
    assert Tensor.from_dlpack("a", array).as_numpy().tolist() == [0, 1, 2]
    back = Tensor.from_dlpack("b", Tensor("a", array).to_dlpack())
    assert back.as_numpy().tolist() == [0, 1, 2]


def test_a_copy_on_demand() -> None:
    array = np.arange(3)
    copied = Tensor.from_dlpack("b", Tensor("a", array).__dlpack__(copy=True))
    copied.as_numpy()[0] = 5
    assert array[0] == 0


def test_a_capsule_keeps_its_array_until_it_is_gone() -> None:
    array = np.zeros(3)
    before = sys.getrefcount(array)
    capsule = Tensor("a", array).to_dlpack()
    assert sys.getrefcount(array) == before + 1
    del capsule
    assert sys.getrefcount(array) == before


@pytest.mark.parametrize("writeable", [True, False])
def test_what_was_made_of_a_capsule_keeps_the_array(writeable: bool) -> None:
    source = np.arange(1000)
    source.flags.writeable = writeable
    gone = weakref.ref(source)
    array = Tensor.from_dlpack("b", Tensor("a", source).to_dlpack()).as_numpy()
    del source
    gc.collect()
    assert gone() is not None and array.sum() == 499500
    del array
    gc.collect()
    assert gone() is None


def test_a_capsule_that_is_dropped_with_an_exception_on_its_way() -> None:
    patterns = np.array([0x3F80], np.uint16)
    before = sys.getrefcount(patterns)
    tensor = Tensor.from_dlpack("a", dlpack.capsule_of(patterns, True))
    with pytest.raises((RuntimeError, BufferError)):  # and no SystemError
        np.from_dlpack(tensor)  # type: ignore[arg-type]
    del tensor
    assert sys.getrefcount(patterns) == before


def test_a_capsule_is_used_once() -> None:
    capsule = Tensor("a", np.zeros(3)).to_dlpack()
    Tensor.from_dlpack("b", capsule)
    with pytest.raises(pb_utils.TritonModelException):
        Tensor.from_dlpack("b", capsule)


class OnGpu:
    def __dlpack__(self) -> object:
        raise AssertionError

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@pytest.mark.parametrize(
    ("made_of", "text"),
    [
        (np.zeros((2, 4))[:, ::2], "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored"),
        (OnGpu(), "DLDevice type 2 is not support by Python backend."),
        ([1, 2], "Tensor must be a DLPack capsule or have `__dlpack__` and `__dlpack_device__` attributes"),
        (np.array(["a"], object), "DLPack does not have support for string tensors."),
        (np.zeros(2, np.complex64), "NumPy dtype is not supported"),
    ],
)
def test_what_cannot_come_from_dlpack(made_of: object, text: str) -> None:
    with pytest.raises(pb_utils.TritonModelException, match=text.replace(".", r"\.")):
        Tensor.from_dlpack("a", made_of)


def test_a_type_that_triton_does_not_have() -> None:
    capsule = dlpack.capsule_of(np.zeros(2), False)
    dlpack._managed_by(capsule).contents.tensor.lanes = 4
    with pytest.raises(pb_utils.TritonModelException, match="type code 2, 64 bits and 4 lanes"):
        Tensor.from_dlpack("a", capsule)


def test_strings_cannot_go_to_dlpack() -> None:
    with pytest.raises(pb_utils.TritonModelException, match="DLPack does not have support for string tensors"):
        Tensor("a", np.array(["x"])).to_dlpack()


# --------------------------------------------------------------------------------------------- what is passed on


def test_an_untouched_input_is_lent() -> None:
    reference = lent(12)
    tensor = input_tensor(Input("a", "INT32", (3,), memoryview(ints(3)), reference))
    given = tensor._as_input(True)
    assert given.lent is reference and not given.data and given.shape == (3,)
    tensor.as_numpy()[0] = 9
    given = tensor._as_input(True)
    assert given.lent is None and bytes(given.data) == np.array([9, 1, 2], np.int32).tobytes()


def test_an_input_that_cannot_be_lent_is_copied_at_once() -> None:
    memory = bytearray(ints(3))
    given = input_tensor(Input("a", "INT32", (3,), memoryview(memory)))._as_input(True)
    memory[:] = bytes(12)
    assert bytes(given.data) == ints(3)


def test_changed_strings_are_sent_as_they_are_now() -> None:
    packed = tensors.pack([b"a", b"bc"])
    tensor = input_tensor(Input("a", "BYTES", (2,), memoryview(packed)))
    assert bytes(tensor._as_input(True).data) == packed
    tensor.as_numpy()[0] = "ä"
    assert bytes(tensor._as_input(True).data) == tensors.pack(["ä".encode(), b"bc"])
    assert bytes(Tensor("b", np.array(["x", "yz"]))._as_input(True).data) == tensors.pack([b"x", b"yz"])


def test_an_array_is_given_as_it_lies() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    data = Tensor("a", array)._as_input(True).data
    array[0, 0] = 7
    assert np.frombuffer(data, np.int32)[0] == 7
    turned = Tensor("a", array.T)._as_input(True)
    assert turned.shape == (3, 2) and bytes(turned.data) == np.ascontiguousarray(array.T).tobytes()
    assert len(Tensor("a", np.zeros((2, 0)))._as_input(True).data) == 0


def test_another_models_output() -> None:
    hold = Hold()
    gone = weakref.ref(hold)
    tensor = output_tensor(OutputTensor("a", "INT32", (3,), memoryview(ints(3)), None, lent(12, hold)))
    del hold
    assert tensor._as_input(True).lent is not None
    passed_on = tensor._passed_on()
    assert isinstance(passed_on, np.ndarray) and passed_on.tolist() == [0, 1, 2]
    array = tensor.as_numpy()
    array += 1
    assert tensor.as_numpy() is array and array.tolist() == [1, 2, 3]
    assert gone() is None, "its memory is given back once it has been copied"


def test_a_tensor_that_is_kept_lets_go_of_lent_memory() -> None:
    hold = Hold()
    gone = weakref.ref(hold)
    tensor = output_tensor(OutputTensor("a", "INT32", (3,), memoryview(ints(3)), None, lent(12, hold)))
    del hold
    tensor._keep()
    assert gone() is None
    assert tensor._as_input(True).lent is None
    assert tensor.as_numpy().tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------------ read-only inputs


def test_a_read_only_input_is_a_view_that_holds_its_memory() -> None:
    memory = bytearray(ints(3))
    hold = Hold()
    gone = weakref.ref(hold)
    tensor = read_only_input_tensor(Input("a", "INT32", (3,), memoryview(memory).toreadonly(), lent(12, hold)))
    del hold
    array = tensor.as_numpy()
    assert array.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    memory[0] = 5
    assert array[0] == 5, "no copy"
    assert tensor._as_input(True).lent is not None
    part = array[1:].reshape(2, 1)
    del array, tensor
    assert gone() is not None and part.tolist() == [[1], [2]]
    del part
    assert gone() is None


def test_a_read_only_input_that_cannot_be_held_is_a_copy() -> None:
    memory = bytearray(ints(3))
    array = read_only_input_tensor(Input("a", "INT32", (3,), memoryview(memory))).as_numpy()
    memory[0] = 5
    assert array.tolist() == [0, 1, 2] and not array.flags.writeable


def test_read_only_strings() -> None:
    tensor = read_only_input_tensor(Input("a", "BYTES", (1,), memoryview(tensors.pack([b"x"])), lent(5)))
    assert tensor.as_numpy().tolist() == [b"x"]


# ------------------------------------------------------------------------------------------------------------- copies


def sent_to_another_process(tensor: Tensor) -> Tensor:
    """As ``multiprocessing`` does it."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with receiver, sender:
        sender.send(tensor)
        received: Tensor = receiver.recv()
    return received


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, sent_to_another_process])
@pytest.mark.parametrize("looked_at", [True, False])
def test_a_copy_needs_nobody_elses_memory(copied: Any, looked_at: bool) -> None:
    memory = bytearray(np.arange(3, dtype=np.float32).tobytes())
    tensor = input_tensor(Input("a", "FP32", (3,), memoryview(memory)))
    if looked_at:
        tensor.as_numpy()
    made = copied(tensor)
    memory[:] = bytes(12)
    assert (made.name(), made.triton_dtype(), made.shape()) == ("a", 11, [3])
    assert made.as_numpy().tolist() == [0, 1, 2]


def test_a_copy_of_bf16_and_of_bytes() -> None:
    tensor = Tensor.from_dlpack("a", dlpack.capsule_of(np.array([0x3F80], np.uint16), True))
    assert sent_to_another_process(tensor).triton_dtype() == 14
    words = input_tensor(Input("a", "BYTES", (1,), memoryview(b"\3\0\0\0abc")))
    assert copy.deepcopy(words).as_numpy().tolist() == [b"abc"]
