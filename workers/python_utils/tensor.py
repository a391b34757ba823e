"""``pb_utils.Tensor``."""

import os
import threading
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from conch import tensors
from conch.requester.inference import OutputTensor, TensorInput
from shm.lent import Lent
from workers.backends.base import Input
from workers.copies import COPIES
from workers.python_utils import dlpack
from workers.python_utils.datatypes import DATATYPE_NUMBERS
from workers.python_utils.failures import TritonModelException
from workers.python_utils.texts import text

Array = npt.NDArray[Any]
_NUMPY_DTYPES = tensors.NUMPY_DTYPES
#: A final response, which makes copies of the inputs that are left, may come from any thread. Of the kind that its
#: holder may take again: a garbage collection may run code of the model that sends one.
_materialising = threading.RLock()
#: a request's inputs of up to this size are never lent
_SMALL_NBYTES = 64 * 1024


class Tensor:
    """A named array. An output's array is the model's own; that of an input, or of another model's output, is a
    private, writable copy, which is made when it is first asked for and kept, so that a model may change and keep it.

    States: what came from outside has ``_source``, its bytes, until its array is made, and ``_lent`` where they can be
    passed on without a copy; every other tensor has ``_array``, a BF16 one as its 16-bit patterns. With both the array
    is a view of the bytes that nobody can write to. ``_elements``: a BYTES output's, as they were when it was made.
    """

    __slots__ = ("__weakref__", "_array", "_datatype", "_elements", "_lent", "_name", "_shape", "_source")

    _array: Array | None
    _datatype: str
    _elements: list[bytes] | None
    _lent: Lent | None
    _name: str
    _shape: tuple[int, ...]
    _source: bytes | memoryview | None

    def __init__(self, name: str, numpy_array: Array) -> None:
        name = _name(name)
        if not isinstance(numpy_array, np.ndarray):
            raise TypeError(f"Tensor '{name}' expects a NumPy array, got {type(numpy_array)}")
        datatype = tensors.datatype_of(numpy_array.dtype)
        if not datatype:
            raise TritonModelException(f"NumPy dtype is not supported: '{numpy_array.dtype}' of tensor '{name}'.")
        self._name = name
        self._datatype = datatype
        self._source = self._lent = None
        self._elements = tensors.elements_of(numpy_array) if datatype == "BYTES" else None
        if not numpy_array.flags.c_contiguous or not numpy_array.dtype.isnative:
            numpy_array = np.array(numpy_array, numpy_array.dtype.newbyteorder("="), order="C")
        self._array = numpy_array
        self._shape = numpy_array.shape

    def name(self) -> str:
        return self._name

    def triton_dtype(self) -> int:
        """The TRITONSERVER_DataType number."""
        return DATATYPE_NUMBERS[self._datatype]

    def shape(self) -> list[int]:
        return list(self._shape)

    def is_cpu(self) -> bool:
        return True

    def as_numpy(self) -> Array:
        """The same array at every call; BYTES as an object array of ``bytes``."""
        if self._datatype == "BF16":
            raise TritonModelException(
                "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
            )
        array = self._array
        return array if array is not None else self._materialise()

    def _materialise(self) -> Array:
        """Copies the bytes out of their sender's memory."""
        with _materialising:
            source = self._source
            if source is None:  # another thread was quicker
                assert self._array is not None
                return self._array
            datatype = self._datatype
            if datatype == "BYTES":
                array = tensors.object_array(tensors.unpack(source), self._shape)
            else:
                dtype = _NUMPY_DTYPES.get(datatype) or tensors.STORAGE_DTYPES[datatype]
                array = np.ndarray(self._shape, dtype, source).copy()
            COPIES.as_numpy += len(source)
            self._array = array
            self._source = self._lent = None
            return array

    def _passed_on(self) -> "Array | list[bytes]":
        """What an output is written from if the model returns a tensor that it has not looked at, without a copy. An
        input's is valid until the batch is answered."""
        source = self._source
        if source is None:  # another thread has just made the array
            array = self._materialise()
            return tensors.elements_of(array) if self._datatype == "BYTES" else array
        if self._datatype == "BYTES":
            return tensors.unpack(source)
        return np.ndarray(self._shape, tensors.STORAGE_DTYPES[self._datatype], source)

    def _keep(self) -> None:
        """Makes the tensor last beyond the memory that its bytes were lent in."""
        with _materialising:
            if self._lent is not None and self._source is not None:
                self._source = bytes(self._source)
                COPIES.kept += len(self._source)
                self._lent = None

    def _as_input(self, waits: bool) -> TensorInput:
        """What another model is asked with; what can be lent is not copied here. ``waits``: whoever asks waits until
        it has been sent."""
        lent = self._lent
        if lent is not None:
            return TensorInput(self._name, self._datatype, self._shape, b"", lent=lent)
        data: bytes | memoryview
        with _materialising:  # an input's bytes go away with the final response, which may be sent right now
            source = self._source
            if source is not None:
                # Nobody knows how long memory stays that cannot be lent. What is large of it is a client's own.
                data = source if waits and len(source) > _SMALL_NBYTES else bytes(source)
                if data is not source:
                    COPIES.request += len(data)
                return TensorInput(self._name, self._datatype, self._shape, data)
        array = self._array
        assert array is not None
        if self._datatype != "BYTES":
            data = tensors.wire_bytes(array)
        elif self._elements is not None:
            data = tensors.pack(self._elements)
        else:
            data = tensors.pack(tensors.elements_of(array))  # of an input, which the model may have changed
        return TensorInput(self._name, self._datatype, self._shape, data)

    def __reduce__(self) -> Any:
        """To be copied or pickled: as its array. A copy of the state would read bytes that go away."""
        array = self._array
        return _remade, (self._name, self._datatype, array if array is not None else self._materialise())

    def to_dlpack(self) -> object:
        """A DLPack capsule of the array that ``as_numpy`` returns."""
        if self._datatype == "BYTES":
            raise TritonModelException("DLPack does not have support for string tensors.")
        array = self._array if self._array is not None else self._materialise()
        return dlpack.capsule_of(array, self._datatype == "BF16")

    def __dlpack__(self, *, stream: object = None, copy: bool | None = None, **_options: object) -> object:
        if not copy:
            return self.to_dlpack()
        array = self._array if self._array is not None else self._materialise()
        return dlpack.capsule_of(array.copy(), self._datatype == "BF16")

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0

    @staticmethod
    def from_dlpack(name: str, tensor: object) -> "Tensor":
        """A tensor that shares memory with ``tensor``: a DLPack capsule, or what has ``__dlpack__``."""
        name = _name(name)
        array, is_bf16 = dlpack.array_of(tensor)
        if not array.flags.c_contiguous:
            raise TritonModelException(
                "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are "
                "supported."
            )
        made = Tensor(name, array)
        if made._datatype == "BYTES":
            raise TritonModelException("DLPack does not have support for string tensors.")
        if is_bf16:
            made._datatype = "BF16"
        return made


def _remade(name: str, datatype: str, array: Array) -> Tensor:
    tensor = Tensor(name, array)
    tensor._datatype = datatype
    return tensor


def _make_lock() -> None:
    global _materialising
    _materialising = threading.RLock()


# in a forked child, nobody would let go of a lock that another thread held
os.register_at_fork(after_in_child=_make_lock)


def _name(name: Any) -> str:
    if not name:
        raise TritonModelException("Tensor name cannot be an empty string.")
    return name if type(name) is str else text(name, "the name of a Tensor")


_new = cast(Any, object.__new__)


def input_tensor(source: Input) -> Tensor:
    """The tensor of one input of a request. Its bytes must stay until its array is made or nobody has it any more."""
    tensor: Tensor = _new(Tensor)
    tensor._name, tensor._datatype, tensor._shape, tensor._source, tensor._lent = source
    tensor._array = tensor._elements = None
    return tensor


class _Viewed:
    """The bytes under an array that nobody may write to; as long as any view of it lives, ``hold`` does."""

    def __init__(self, interface: dict[str, Any], source: memoryview, hold: object) -> None:
        self.__array_interface__ = interface
        self._source = source
        self._hold = hold


def read_only_input_tensor(source: Input) -> Tensor:
    """As ``input_tensor``, but nobody can write to its array: a view of the sender's memory where that can be held on
    to for as long as the view lives, a copy otherwise. BYTES are objects of their own as ever."""
    tensor = input_tensor(source)
    if source.datatype == "BYTES":
        return tensor
    lent = source.lent
    if lent is None:
        tensor._materialise().flags.writeable = False
    else:
        dtype = np.dtype(_NUMPY_DTYPES.get(source.datatype) or tensors.STORAGE_DTYPES[source.datatype])
        address = np.frombuffer(source.data, np.uint8).ctypes.data
        interface = {"version": 3, "typestr": dtype.str, "shape": source.shape, "data": (address, True)}
        tensor._array = np.asarray(_Viewed(interface, source.data, lent.hold))
    return tensor


def output_tensor(output: OutputTensor) -> Tensor:
    """The tensor of one output of another model. What is lent stays until its array is made or nobody has it."""
    tensor: Tensor = _new(Tensor)
    tensor._name = output.name
    tensor._datatype = output.datatype
    tensor._shape = tuple(output.shape)
    tensor._source = output.data
    tensor._lent = output.lent
    tensor._array = tensor._elements = None
    return tensor
