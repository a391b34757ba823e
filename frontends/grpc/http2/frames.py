"""Frames of HTTP/2 (RFC 9113): their numbers, and those that a server writes."""

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_NBYTES: Final = 9

# kinds
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

# flags
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITIZED: Final = 0x20

# error codes
NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
INTERNAL_ERROR: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB

# settings
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

#: of a window, and of a stream's number
MAX_31_BITS: Final = (1 << 31) - 1
#: of a connection, and of streams unless the peer's settings say otherwise
DEFAULT_WINDOW_NBYTES: Final = 65535
DEFAULT_FRAME_NBYTES: Final = 16384

_HEADER: Final = struct.Struct(">HBBBI")
_SETTING: Final = struct.Struct(">HI")
_TWO_WORDS: Final = struct.Struct(">II")

#: a frame's header in parts: upper two bytes and lowest byte of the payload's length, kind, flags, number of the stream
unpack_header = _HEADER.unpack_from


class ConnectionFault(Exception):
    """The peer has broken the protocol: the connection ends with the error ``code``."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def frame_header(nbytes: int, kind: int, flags: int, number: int) -> bytes:
    """``nbytes`` of payload follow."""
    return _HEADER.pack(nbytes >> 8, nbytes & 0xFF, kind, flags, number)


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    return frame_header(len(payload), kind, flags, number) + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


def window_update(number: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, number, increment.to_bytes(4, "big"))


def rst_stream(number: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, number, code.to_bytes(4, "big"))


def goaway(last: int, code: int, text: str = "") -> bytes:
    """``last``: streams with larger numbers have not been looked at."""
    return frame(GOAWAY, 0, 0, _TWO_WORDS.pack(last, code) + text.encode())


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Checked pairs of setting and value, in order. Raises ``ConnectionFault``."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(FRAME_SIZE_ERROR, "settings of a wrong size")
    pairs = list(_SETTING.iter_unpack(payload))
    for key, value in pairs:
        if key == ENABLE_PUSH and value > 1:
            raise ConnectionFault(PROTOCOL_ERROR, "a wrong value for ENABLE_PUSH")
        if key == INITIAL_WINDOW_SIZE and value > MAX_31_BITS:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "too large an initial window")
        if key == MAX_FRAME_SIZE and not DEFAULT_FRAME_NBYTES <= value < 1 << 24:
            raise ConnectionFault(PROTOCOL_ERROR, "a wrong value for MAX_FRAME_SIZE")
    return pairs


def header_block(payload: bytes, flags: int) -> bytes:
    """What a HEADERS frame has between padding and priority. Raises ``ConnectionFault``."""
    start, stop = 0, len(payload)
    if flags & PADDED:
        start += 1
        stop -= payload[0] if payload else 1
    if flags & PRIORITIZED:
        start += 5
    if start > stop:
        raise ConnectionFault(PROTOCOL_ERROR if flags & PADDED else FRAME_SIZE_ERROR, "headers of a wrong size")
    return payload[start:stop]
