"""DLPack, by NumPy where it can, and by hand for BF16, which NumPy does not know.

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
_BFLOAT = 4
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

_CapsuleDestructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _CapsuleDestructor]
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]
#: in a destructor the capsule is being freed: it may only be passed by address
_is_valid_address = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer_of_address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

#: what exported BF16 tensors point to, by the address of their DLManagedTensor, until the consumer's deleter call
_exported: dict[int, tuple[object, ...]] = {}


def _delete(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


def _destroy_unused(capsule: int) -> None:
    if _is_valid_address(capsule, _NAME):
        _exported.pop(_pointer_of_address(capsule, _NAME), None)


_deleter = _Deleter(_delete)
_destructor = _CapsuleDestructor(_destroy_unused)


def bf16_capsule(patterns: Array) -> object:
    """A capsule of a BF16 tensor, given as its 16-bit patterns, C-contiguous."""
    shape = (ctypes.c_int64 * patterns.ndim)(*patterns.shape)
    managed = _DLManagedTensor()
    managed.tensor = _DLTensor(
        patterns.ctypes.data, CPU, 0, patterns.ndim, _BFLOAT, 16, 1, shape, ctypes.POINTER(ctypes.c_int64)(), 0
    )
    managed.deleter = _deleter
    address = ctypes.addressof(managed)
    _exported[address] = (managed, shape, patterns)
    return _new_capsule(address, _NAME, _destructor)


class _Exporter:
    """What NumPy wants to see around a bare capsule."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_options: object) -> object:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0


def array_of(tensor: Any) -> tuple[Array, bool]:
    """An array that shares the tensor's memory, and whether it holds BF16 patterns. Raises ``TritonModelException``."""
    if _is_valid(tensor, _NAME):
        capsule = tensor
    elif hasattr(tensor, "__dlpack__") and hasattr(tensor, "__dlpack_device__"):
        device_type = int(tensor.__dlpack_device__()[0])
        if device_type not in (CPU, _CUDA_HOST):
            raise TritonModelException(f"DLDevice type {device_type} is not support by Python backend.")
        capsule = tensor.__dlpack__()
    else:
        raise TritonModelException(
            "Provided tensor is not supported. Tensor must be a DLPack capsule or have `__dlpack__` and "
            "`__dlpack_device__` attributes"
        )
    if not _is_valid(capsule, _NAME):
        raise TritonModelException("The DLPack capsule has been used already.")
    managed = ctypes.cast(_pointer(capsule, _NAME), ctypes.POINTER(_DLManagedTensor))
    described = managed.contents.tensor
    if described.device_type not in (CPU, _CUDA_HOST):
        raise TritonModelException(f"DLDevice type {described.device_type} is not support by Python backend.")
    if (described.code, described.bits, described.lanes) == (_BFLOAT, 16, 1):
        return _bf16_array(capsule, managed), True
    try:
        exporter: Any = _Exporter(capsule)
        return np.from_dlpack(exporter), False
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TritonModelException(f"DLPack tensor cannot be used: {error}") from error


class _Owner:
    """Keeps the exporter's memory until the array over it is gone."""

    def __init__(self, managed: Any, interface: dict[str, Any]) -> None:
        self._managed = managed
        self._delete: Callable[[Any], None] | None = managed.contents.deleter or None
        self.__array_interface__ = interface

    def __del__(self) -> None:
        if self._delete:
            self._delete(self._managed)


def _bf16_array(capsule: object, managed: Any) -> Array:
    described = managed.contents.tensor
    shape = tuple(described.shape[: described.ndim]) if described.ndim else ()
    strides = None
    if described.strides:
        strides = tuple(2 * stride for stride in described.strides[: described.ndim])
    interface = {
        "version": 3,
        "typestr": "<u2",
        "shape": shape,
        "strides": strides,
        "data": ((described.data or 0) + described.byte_offset, False),
    }
    _set_name(capsule, _USED_NAME)
    return np.asarray(_Owner(managed, interface))
