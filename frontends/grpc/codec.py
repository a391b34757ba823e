"""Inference messages as bytes, with the tensors beside them, so that large ones are not copied more than needed."""

from collections.abc import Iterable
from typing import Any

from conch.protos import load_service_pb2

service_pb2 = load_service_pb2()


def split_request(payload: bytes) -> tuple[Any, list[memoryview]]:
    """The ``ModelInferRequest`` without ``raw_input_contents``, and those. Raises ``DecodeError``."""
    request = service_pb2.ModelInferRequest.FromString(payload)
    blobs = [memoryview(blob) for blob in request.raw_input_contents]
    if blobs:
        request.ClearField("raw_input_contents")
    return request, blobs


def join_response(head: Any, blobs: Iterable[bytes | memoryview]) -> bytes:
    """The encoded ``ModelInferResponse`` that ``head`` is with ``blobs`` as its ``raw_output_contents``."""
    head.raw_output_contents.extend(map(bytes, blobs))
    encoded: bytes = head.SerializeToString()
    return encoded


def stream_response(encoded: bytes) -> bytes:
    """The encoded ``ModelStreamInferResponse`` around an encoded ``ModelInferResponse``."""
    return b"\x12" + _varint(len(encoded)) + encoded


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
