"""conch.tensors: NumPy arrays to wire bytes and back."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch import tensors
from conch.datatypes import ITEM_SIZES

elements_strategy = st.lists(st.binary(max_size=20), max_size=12)


def reference_pack(elements: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


@pytest.mark.parametrize("datatype", [name for name in ITEM_SIZES if name not in ("BYTES", "BF16")])
def test_numeric_round_trip(datatype: str) -> None:
    dtype = tensors.NUMPY_DTYPES[datatype]
    array = np.arange(6).reshape(2, 3).astype(dtype)
    assert tensors.datatype_of(array.dtype) == datatype
    assert dtype.itemsize == ITEM_SIZES[datatype]
    wire = tensors.wire_bytes(array)
    assert len(wire) == 6 * ITEM_SIZES[datatype]
    assert np.array_equal(tensors.as_array(wire, datatype, (2, 3)), array)


def test_as_array_is_a_view_and_checks_the_size() -> None:
    buffer = bytearray(8)
    array = tensors.as_array(memoryview(buffer), "INT32", (2,))
    buffer[0] = 7
    assert array[0] == 7
    with pytest.raises(ValueError):
        tensors.as_array(memoryview(buffer), "INT32", (3,))
    assert tensors.as_array(b"", "FP32", (0, 4)).shape == (0, 4)


def test_wire_bytes_of_unusual_layouts() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert bytes(tensors.wire_bytes(array.T)) == np.ascontiguousarray(array.T).tobytes()
    assert bytes(tensors.wire_bytes(array[:, ::2])) == array[:, ::2].tobytes()
    assert bytes(tensors.wire_bytes(array.astype(">i4"))) == array.tobytes()
    assert tensors.datatype_of(np.dtype(">i4")) == "INT32"
    assert bytes(tensors.wire_bytes(np.array(5, np.int16))) == b"\x05\x00"
    assert bytes(tensors.wire_bytes(np.empty((0, 3), np.float32))) == b""


def test_datatype_of_others() -> None:
    for name in ("O", "S3", "U5"):
        assert tensors.datatype_of(np.dtype(name)) == "BYTES"
    for other in (np.dtype("complex64"), np.dtype("M8[s]"), np.dtype([("a", "i4")])):
        assert tensors.datatype_of(other) == ""


@given(elements_strategy)
def test_bytes_round_trip(elements: list[bytes]) -> None:
    wire = tensors.pack(elements)
    assert wire == reference_pack(elements)
    assert tensors.packed_nbytes(elements) == len(wire)
    assert tensors.unpack(wire) == elements
    assert tensors.unpack(memoryview(wire)) == elements
    assert tensors.count(wire, 100) == len(elements)
    target = memoryview(bytearray(len(wire)))
    tensors.pack_into(elements, target)
    assert bytes(target) == wire


@given(st.integers(0, 9), st.integers(0, 9))
def test_elements_of_one_length(number: int, length: int) -> None:
    elements = [bytes([index]) * length for index in range(number)]
    assert tensors.unpack(reference_pack(elements)) == elements
    assert tensors.count(reference_pack(elements), 100) == number


@given(st.binary(max_size=40))
def test_any_buffer_is_unpacked_or_refused(buffer: bytes) -> None:
    try:
        elements = tensors.unpack(buffer)
    except tensors.BadBytes:
        with pytest.raises(tensors.BadBytes):
            tensors.count(buffer, 100)
    else:
        assert tensors.pack(elements) == buffer
        assert tensors.count(buffer, 100) == len(elements)


def test_large_elements_are_packed_in_place() -> None:
    elements = [b"x" * 10_000, b"", b"y" * 9_000]
    target = memoryview(bytearray(tensors.packed_nbytes(elements)))
    tensors.pack_into(elements, target)
    assert bytes(target) == reference_pack(elements)


def test_incomplete_texts() -> None:
    with pytest.raises(tensors.BadBytes, match="incomplete string length indicator"):
        tensors.unpack(b"\x01\x00")
    with pytest.raises(tensors.BadBytes, match="incomplete string data"):
        tensors.unpack(struct.pack("<I", 2**32 - 1))
    with pytest.raises(tensors.BadBytes, match="incomplete string data"):
        tensors.count(struct.pack("<I", 5) + b"four", 1)


def test_count_stops_at_the_limit() -> None:
    wire = reference_pack([b"a", b"bc"]) + b"\xff\xff"
    assert tensors.count(wire, 1) == 2
    assert tensors.count(reference_pack([b""] * 1000), 10) == 11


def test_elements_of_arrays() -> None:
    mixed = np.array([b"a\x00", "\u00e9", 7, bytearray(b"z")], np.object_).reshape(2, 2)
    assert tensors.elements_of(mixed) == [b"a\x00", "\u00e9".encode(), b"7", b"z"]
    assert tensors.elements_of(np.array(["x", "yz"])) == [b"x", b"yz"]
    assert tensors.elements_of(np.array([b"x", b"yz"])) == [b"x", b"yz"]
    assert tensors.elements_of(np.array([["x", "y"], ["z", "w"]], np.object_).T) == [b"x", b"z", b"y", b"w"]
    array = tensors.object_array([b"a", b"b"], (2, 1))
    assert array.shape == (2, 1) and array[1, 0] == b"b"
    with pytest.raises(ValueError):
        tensors.object_array([b"a"], (2,))


def test_bf16() -> None:
    values = np.array([0.0, -1.5, 3.140625, np.inf, -np.inf, 1e38], np.float32)
    back = tensors.bf16_to_fp32(tensors.fp32_to_bf16(values))
    assert np.allclose(back, values, rtol=2**-8)
    assert np.array_equal(back[:5], values[:5])
    assert np.isnan(tensors.bf16_to_fp32(tensors.fp32_to_bf16(np.array([np.nan], np.float32))))[0]
    assert tensors.fp32_to_bf16(np.array([1.00390625], np.float32))[0] == 0x3F80  # a tie goes to even
    assert tensors.as_array(b"\x80\x3f", "BF16", (1,)).dtype == np.uint16
