"""Header blocks (HPACK, RFC 7541): a request's, decoded once as long as clients repeat them; a response's, constant."""

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import hpack
from hpack.hpack import Decoder
from hpack.table import HeaderTable

from frontends.grpc.errors import INTERNAL, RESOURCE_EXHAUSTED, UNIMPLEMENTED, shortened
from frontends.grpc.exchange import Failure, Metadata
from frontends.grpc.http2.frames import COMPRESSION_ERROR, ConnectionFault

#: names and values, with 32 bytes for each pair; what clients are told
MAX_LIST_NBYTES: Final = 16384
#: a larger list is not decoded to its end, so that nothing can be read after it
_HARD_LIST_NBYTES: Final = 4 * MAX_LIST_NBYTES
_CACHED: Final = 16
_CACHED_BLOCK_NBYTES: Final = 2048
_CACHED_LIST_NBYTES: Final = 4096

_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_NOT_IN_HTTP2: Final = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
#: gRPC's and HTTP's own, which no application sees
_NOT_METADATA: Final = frozenset(
    (b"te", b"content-type", b"content-length", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-timeout", b"host")
)
_name: Final = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+").fullmatch
_bad_value: Final = re.compile(rb"[\0\r\n]").search
_timeout: Final = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_content_type: Final = re.compile(rb"application/grpc(?:[+;].*)?").fullmatch
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_ENCODINGS: Final = {b"identity": "", b"gzip": "gzip", b"deflate": "deflate"}


class RequestHead(NamedTuple):
    """What a request's headers say. With ``malformed`` nothing else counts."""

    method: str = ""
    metadata: Metadata = ()
    timeout_s: float | None = None
    #: of compressed messages: "", "gzip" or "deflate"
    encoding: str = ""
    #: what the answer's messages may be compressed with
    accepted: frozenset[str] = frozenset()
    #: why the call is not served: the status of HTTP, or that of gRPC
    http_status: int = 200
    failure: Failure | None = None
    #: no request but the end of one
    trailers: bool = False
    malformed: bool = False


class _Table(HeaderTable):
    """Counts its changes: afterwards the same block can mean something else."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.changes += 1
        super().add(name, value)

    @property
    def maxsize(self) -> int:
        return self._maxsize

    @maxsize.setter
    def maxsize(self, nbytes: int) -> None:
        self.changes += 1
        HeaderTable.maxsize.__set__(self, nbytes)  # type: ignore[attr-defined]


class HeaderDecoder:
    """Of one connection."""

    __slots__ = ("_cache", "_changes", "_decoder", "_table")

    def __init__(self) -> None:
        self._decoder = Decoder(_HARD_LIST_NBYTES)
        self._decoder.header_table = self._table = _Table()
        self._cache: dict[bytes, RequestHead] = {}
        self._changes = 0

    def decode(self, block: bytes) -> RequestHead:
        """Raises ``ConnectionFault``: the next block could not be read."""
        head = self._cache.get(block)
        return self._decode(block) if head is None else head

    def _decode(self, block: bytes) -> RequestHead:
        try:
            fields = list(self._decoder.decode(block, raw=True))
        except hpack.HPACKError as error:
            raise ConnectionFault(COMPRESSION_ERROR, f"headers cannot be decoded: {error}") from None
        nbytes = sum(len(name) + len(value) + 32 for name, value in fields)
        if nbytes > MAX_LIST_NBYTES:
            failure = Failure(
                RESOURCE_EXHAUSTED, f"received metadata size exceeds the limit ({nbytes} vs. {MAX_LIST_NBYTES})"
            )
            head = RequestHead(failure=failure)
        else:
            head = read_head(fields)
        changes = self._table.changes
        if changes != self._changes:
            self._changes = changes
            self._cache.clear()
        elif len(block) <= _CACHED_BLOCK_NBYTES and nbytes <= _CACHED_LIST_NBYTES:
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            self._cache[block] = head
        return head


def read_head(fields: Iterable[tuple[bytes, bytes]]) -> RequestHead:
    """A request's head from decoded ``fields``."""
    pseudo: dict[bytes, bytes] = {}
    own: dict[bytes, bytes] = {}
    metadata: list[tuple[str, str | bytes]] = []
    failure: Failure | None = None
    regular = False
    for name, value in fields:
        if _bad_value(value):
            return _MALFORMED
        if name[:1] == b":":
            if regular or name in pseudo or name not in _PSEUDO:
                return _MALFORMED
            pseudo[name] = value
            continue
        regular = True
        if name in _NOT_IN_HTTP2 or not _name(name):
            return _MALFORMED
        if name in _NOT_METADATA:
            own[name] = value
        elif name.endswith(b"-bin"):
            try:
                metadata += [(name.decode(), _binary(part)) for part in value.split(b",")]
            except binascii.Error:
                failure = Failure(INTERNAL, f"the metadata '{name.decode()}' is not valid base64")
        else:
            metadata.append((name.decode(), _text(value)))
    if not pseudo:
        return RequestHead(trailers=True)
    if not {b":method", b":scheme", b":path"} <= pseudo.keys():
        return _MALFORMED
    return _request(pseudo, own, tuple(metadata), failure)


_MALFORMED: Final = RequestHead(malformed=True)


def _request(
    pseudo: dict[bytes, bytes], own: dict[bytes, bytes], metadata: Metadata, failure: Failure | None
) -> RequestHead:
    status = 200
    if pseudo[b":method"] != b"POST":
        status = 405
    elif not _content_type(own.get(b"content-type", b"")):
        status = 415
    timeout_s: float | None = None
    if b"grpc-timeout" in own:
        match = _timeout(own[b"grpc-timeout"])
        if match is None:
            failure = Failure(INTERNAL, "grpc-timeout is not of the form <up to 8 digits><one of HMSmun>")
        else:
            timeout_s = int(match[1]) * _UNITS[match[2]]
    encoding = _ENCODINGS.get(own.get(b"grpc-encoding", b"identity"))
    if encoding is None:
        name = own[b"grpc-encoding"].decode(errors="replace")
        failure = Failure(UNIMPLEMENTED, f"messages compressed with '{name}' cannot be read; use gzip or deflate")
    offered = own.get(b"grpc-accept-encoding", b"").replace(b" ", b"").split(b",")
    return RequestHead(
        method=pseudo[b":path"].decode(errors="replace"),
        metadata=metadata,
        timeout_s=timeout_s,
        encoding=encoding or "",
        accepted=frozenset(_ENCODINGS[name] for name in offered if name in _ENCODINGS),
        http_status=status,
        failure=failure,
    )


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _binary(value: bytes) -> bytes:
    value = value.strip()
    return base64.b64decode(value.rstrip(b"=") + b"=" * (-len(value.rstrip(b"=")) % 4), validate=True)


# ------------------------------------------------------------------------------------------------------------ responses


def literal(name: bytes, value: bytes) -> bytes:
    """A pair of which no table takes note."""
    return b"\0" + _length(len(name)) + name + _length(len(value)) + value


def _length(nbytes: int) -> bytes:
    if nbytes < 127:
        return bytes((nbytes,))
    encoded, rest = bytearray((127,)), nbytes - 127
    while rest > 127:
        encoded.append(rest & 127 | 128)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


#: entry 8 of the static table
_STATUS_200: Final = b"\x88"
_BEGINNING: Final = (
    _STATUS_200
    + literal(b"content-type", b"application/grpc")
    + literal(b"grpc-accept-encoding", b"identity, deflate, gzip")
)
#: a response's headers, by what its messages are compressed with
RESPONSES: Final = {
    "": _BEGINNING,
    "gzip": _BEGINNING + literal(b"grpc-encoding", b"gzip"),
    "deflate": _BEGINNING + literal(b"grpc-encoding", b"deflate"),
}
OK_TRAILERS: Final = literal(b"grpc-status", b"0")

_ESCAPES: Final = [bytes((byte,)) if 0x20 <= byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in range(256)]


def percent_encoded(text: str) -> bytes:
    """As in ``grpc-message``."""
    return b"".join([_ESCAPES[byte] for byte in text.encode(errors="replace")])


def failure_trailers(failure: Failure, begun: bool) -> bytes:
    """``begun``: the response's headers have been sent; otherwise this is all of it."""
    trailers = literal(b"grpc-status", b"%d" % failure.code)
    if failure.message:
        trailers += literal(b"grpc-message", percent_encoded(shortened(failure.message)))
    return trailers if begun else _BEGINNING + trailers


def http_response(status: int) -> bytes:
    """A whole response that is none of gRPC."""
    return literal(b":status", b"%d" % status) + literal(b"content-length", b"0")
