"""As much HTTP/2 as it takes to send what no client sends."""

import struct

#: with empty settings
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header that no table remembers."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def message(stream: int, payload: bytes) -> bytes:
    """A frame with one whole gRPC message, the last of the stream."""
    return frame(0, 1, stream, b"\x00" + struct.pack(">I", len(payload)) + payload)


def headers(method: str) -> bytes:
    return (
        b"\x83\x86"
        + literal(b":path", f"/test.Echo/{method}".encode())
        + literal(b":authority", b"test")
        + literal(b"content-type", b"application/grpc")
        + literal(b"te", b"trailers")
    )


HEADERS = headers("Say")
