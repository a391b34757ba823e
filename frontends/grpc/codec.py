"""Inference messages as bytes, with the tensors beside them, so that large ones are not copied more than needed."""

from collections.abc import Iterable
from typing import Any, Final

from conch.errors import TooLarge
from conch.protos import load_service_pb2
from frontends.grpc.exchange import Payload

service_pb2 = load_service_pb2()

_ModelInferRequest: Final = service_pb2.ModelInferRequest

#: protobuf's tags of what has a length in front: the number of the field, shifted, and 2
_RAW_INPUT_CONTENTS: Final = 7 << 3 | 2
_RAW_OUTPUT_CONTENTS: Final = bytes([6 << 3 | 2])
_OTHER_FIELDS: Final = frozenset(number << 3 | 2 for number in range(1, 16) if number != 7)
#: below this protobuf's own copies cost less than to look for the tensors
_SMALL_NBYTES: Final = 8192
#: a message of more fields is not walked through in Python
_MAX_FIELDS: Final = 1000
#: protobuf takes up to 40 times the size of many small fields, and half a second for each MiB of them, in which nobody
#: else is served: of a message that could consist of them …
_MAX_FINE_NBYTES: Final = 1 << 20
#: … and, as HTTP has it, of all that is not ``raw_input_contents``
_MAX_HEAD_NBYTES: Final = 64 << 20


def split_request(payload: Payload) -> tuple[Any, list[memoryview]]:
    """The ``ModelInferRequest`` without ``raw_input_contents``, and those, as views of ``payload`` where it is large.
    Of very many, which nobody needs, only one more than there are inputs. Raises ``DecodeError``, and ``TooLarge`` for
    what would take far more time and memory than it has bytes."""
    if len(payload) >= _SMALL_NBYTES:
        split = _split(payload)
        if split is not None:
            kept, blobs = split
            nbytes = sum(map(len, kept))
            if nbytes > _MAX_HEAD_NBYTES:
                raise TooLarge(
                    f"the request has {nbytes} bytes beside raw_input_contents, more than the maximum of "
                    f"{_MAX_HEAD_NBYTES}; send large tensors as raw_input_contents"
                )
            return _ModelInferRequest.FromString(b"".join(kept)), blobs
        if len(payload) > _MAX_FINE_NBYTES:
            raise TooLarge(
                f"a request of {len(payload)} bytes may have no more than {_MAX_FIELDS} inputs, outputs, parameters "
                "and raw_input_contents, all together"
            )
    request = _ModelInferRequest.FromString(payload)
    contents = request.raw_input_contents
    blobs = [memoryview(blob) for blob in contents[: max(_MAX_FIELDS, len(request.inputs) + 1)]]
    if blobs:
        request.ClearField("raw_input_contents")
    return request, blobs


def read_request(request_type: Any, payload: Payload) -> Any:
    """The message of any other RPC. Raises as ``split_request``. Only loads may be large: they carry files."""
    if len(payload) > _MAX_FINE_NBYTES:
        if request_type is not service_pb2.RepositoryModelLoadRequest:
            raise TooLarge(f"the request has {len(payload)} bytes, more than the maximum of {_MAX_FINE_NBYTES}")
        if _split(payload) is None:
            raise TooLarge(f"a load of {len(payload)} bytes may have no more than {_MAX_FIELDS} parameters and files")
    return request_type.FromString(payload)


def _split(payload: Payload) -> tuple[list[memoryview], list[memoryview]] | None:
    """The fields, in pieces, of a ``ModelInferRequest`` other than ``raw_input_contents``, and those. None for what a
    client's protobuf does not write: whether that is right is protobuf's decision."""
    view = memoryview(payload)
    end = len(payload)
    kept: list[memoryview] = []
    blobs: list[memoryview] = []
    kept_from = position = fields = 0
    while position < end:
        fields += 1
        if fields > _MAX_FIELDS:
            return None
        field = position
        tag = payload[field]
        length = shift = 0
        while True:
            position += 1
            if position >= end or shift > 28:
                return None
            byte = payload[position]
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        start = position + 1
        position = start + length
        if position > end:
            return None
        if tag == _RAW_INPUT_CONTENTS:
            blobs.append(view[start:position])
            if kept_from < field:
                kept.append(view[kept_from:field])
            kept_from = position
        elif tag not in _OTHER_FIELDS:
            return None
    kept.append(view[kept_from:])
    return kept, blobs


def join_response(head: Any, blobs: Iterable[bytes | memoryview]) -> bytes:
    """The encoded ``ModelInferResponse`` that ``head`` is with ``blobs`` as its ``raw_output_contents``."""
    parts: list[bytes | memoryview] = [head.SerializeToString()]
    for blob in blobs:
        parts += (_RAW_OUTPUT_CONTENTS, _varint(len(blob)), blob)
    return b"".join(parts)


def stream_response(encoded: bytes) -> bytes:
    """The encoded ``ModelStreamInferResponse`` around an encoded ``ModelInferResponse``."""
    return b"\x12" + _varint(len(encoded)) + encoded


def _varint(value: int) -> bytes:
    if value < 0x80:
        return value.to_bytes()
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
