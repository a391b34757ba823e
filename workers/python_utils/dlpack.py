"""DLPack where NumPy falls short: it knows no BF16, refuses arrays that must not be written to, and gives such ones.

::

    capsule "dltensor" ─► DLManagedTensor { DLTensor { data, device, ndim, dtype, shape, strides, offset }, deleter }
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.python_utils.failures import TritonModelException

Array = npt.NDArray[Any]

CPU = 1
_CUDA_HOST = 3
#: NumPy's kinds, by DLDataTypeCode
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}
_BFLOAT = 4
_BITS = {"i": (8, 16, 32, 64), "u": (8, 16, 32, 64), "f": (16, 32, 64), "b": (8,)}
_NAME = b"dltensor"
_USED_NAME = b"used_dltensor"


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DLManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_DLManagedTensor))
_DLManagedTensor._fields_ = [("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]

_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


def capsule_of(array: Array, is_bf16: bool) -> object:
    """A capsule of ``array``, which is C-contiguous; BF16 is given as its 16-bit patterns."""
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    # NumPy's: one with a destructor in Python harms the exception that is on its way when it is dropped
    capsule = np.ndarray.__dlpack__(array)
    if is_bf16:
        _managed_by(capsule).contents.tensor.code = _BFLOAT
    return capsule


def array_of(tensor: Any) -> tuple[Array, bool]:
    """An array that shares the tensor's memory, and whether it holds BF16 patterns. Raises ``TritonModelException``."""
    if isinstance(tensor, np.ndarray):
        return tensor, False  # also one that must not be written to, which NumPy does not export
    if _is_valid(tensor, _NAME):
        capsule = tensor
    elif hasattr(tensor, "__dlpack__") and hasattr(tensor, "__dlpack_device__"):
        _check_device(int(tensor.__dlpack_device__()[0]))
        capsule = tensor.__dlpack__()
    else:
        raise TritonModelException(
            "Provided tensor is not supported. Tensor must be a DLPack capsule or have `__dlpack__` and "
            "`__dlpack_device__` attributes"
        )
    if not _is_valid(capsule, _NAME):
        raise TritonModelException("The DLPack capsule has been used already.")
    managed = _managed_by(capsule)
    described = managed.contents.tensor
    _check_device(described.device_type)
    is_bf16 = (described.code, described.bits, described.lanes) == (_BFLOAT, 16, 1)
    dtype = np.dtype(np.uint16) if is_bf16 else _dtype(described)
    shape = tuple(described.shape[: described.ndim]) if described.ndim else ()
    strides = None
    if described.strides:
        strides = tuple(dtype.itemsize * stride for stride in described.strides[: described.ndim])
    interface = {
        "version": 3,
        "typestr": dtype.str,
        "shape": shape,
        "strides": strides,
        "data": ((described.data or 0) + described.byte_offset, False),
    }
    _set_name(capsule, _USED_NAME)
    return np.asarray(_Owner(managed, interface)), is_bf16


def _managed_by(capsule: object) -> Any:
    return ctypes.cast(_pointer(capsule, _NAME), ctypes.POINTER(_DLManagedTensor))


def _check_device(device_type: int) -> None:
    if device_type not in (CPU, _CUDA_HOST):
        raise TritonModelException(f"DLDevice type {device_type} is not support by Python backend.")


def _dtype(described: Any) -> np.dtype[Any]:
    kind = _KINDS.get(described.code, "")
    if described.lanes != 1 or described.bits not in _BITS.get(kind, ()):
        raise TritonModelException(
            f"DLPack tensors of type code {described.code}, {described.bits} bits and {described.lanes} lanes are not "
            "supported."
        )
    return np.dtype(f"{kind}{described.bits // 8}")


class _Writable:
    """An array over the memory of another one, without its mark that nobody may write there: DLPack has none."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


class _Owner:
    """Keeps the exporter's memory until the array over it is gone."""

    def __init__(self, managed: Any, interface: dict[str, Any]) -> None:
        self._managed = managed
        self._delete: Callable[[Any], None] | None = managed.contents.deleter or None
        self.__array_interface__ = interface

    def __del__(self) -> None:
        if self._delete:
            self._delete(self._managed)
