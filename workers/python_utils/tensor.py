"""``pb_utils.Tensor``."""

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from conch import tensors
from shm.lent import Lent
from workers.backends.base import Input
from workers.python_utils import dlpack
from workers.python_utils.datatypes import DATATYPE_NUMBERS
from workers.python_utils.failures import TritonModelException

Array = npt.NDArray[Any]
_NUMPY_DTYPES = tensors.NUMPY_DTYPES


class Tensor:
    """A named array. An output's array is the model's own; an input's is a private, writable copy, which is made when
    it is first asked for and kept, so that a model may change it and keep it.

    States: an input has ``_source`` until its array is made; every other tensor has ``_array``, a BF16 one as its
    16-bit patterns. ``_elements``: a BYTES output's, as they were when it was made.
    """

    __slots__ = ("__weakref__", "_array", "_datatype", "_elements", "_lent", "_name", "_shape", "_source")

    _array: Array | None
    _datatype: str
    _elements: list[bytes] | None
    _lent: Lent | None
    _name: str
    _shape: tuple[int, ...]
    _source: memoryview | None

    def __init__(self, name: str, numpy_array: Array) -> None:
        _check_name(name)
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
        """Copies an input out of its sender's memory."""
        source = self._source
        assert source is not None
        datatype = self._datatype
        if datatype == "BYTES":
            array = tensors.object_array(tensors.unpack(source), self._shape)
        else:
            dtype = _NUMPY_DTYPES.get(datatype) or tensors.STORAGE_DTYPES[datatype]
            array = np.ndarray(self._shape, dtype, source).copy()
        self._array = array
        self._source = self._lent = None
        return array

    def _passed_on(self) -> "Array | list[bytes]":
        """What an output is written from if the model returns an input that it has not looked at: valid until the batch
        is answered, without a copy."""
        source = self._source
        assert source is not None
        if self._datatype == "BYTES":
            return tensors.unpack(source)
        return np.ndarray(self._shape, tensors.STORAGE_DTYPES[self._datatype], source)

    def to_dlpack(self) -> object:
        """A DLPack capsule of the array that ``as_numpy`` returns."""
        if self._datatype == "BYTES":
            raise TritonModelException("DLPack does not have support for string tensors.")
        array = self._array if self._array is not None else self._materialise()
        if self._datatype == "BF16":
            return dlpack.bf16_capsule(array)
        return array.__dlpack__()

    def __dlpack__(self, *, stream: object = None, **_options: object) -> object:
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0

    @staticmethod
    def from_dlpack(name: str, tensor: object) -> "Tensor":
        """A tensor that shares memory with ``tensor``: a DLPack capsule, or what has ``__dlpack__``."""
        _check_name(name)
        array, is_bf16 = dlpack.array_of(tensor)
        if not array.flags.c_contiguous:
            raise TritonModelException(
                "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are "
                "supported."
            )
        made = Tensor(name, array)
        if is_bf16:
            made._datatype = "BF16"
        return made


def _check_name(name: str) -> None:
    if type(name) is not str:
        raise TypeError(f"Tensor expects a str name, got {type(name)}")
    if not name:
        raise TritonModelException("Tensor name cannot be an empty string.")


_new = cast(Any, object.__new__)


def input_tensor(source: Input) -> Tensor:
    """The tensor of one input of a request. Its bytes must stay until its array is made or nobody has it any more."""
    tensor: Tensor = _new(Tensor)
    tensor._name, tensor._datatype, tensor._shape, tensor._source, tensor._lent = source
    tensor._array = tensor._elements = None
    return tensor
