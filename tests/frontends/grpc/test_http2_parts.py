"""Frames, headers, messages and windows by themselves."""

import itertools
import struct
import zlib

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontends.grpc.exchange import Failure
from frontends.grpc.http2 import frames
from frontends.grpc.http2.flow import Allowance, Output, widened
from frontends.grpc.http2.frames import ConnectionFault
from frontends.grpc.http2.headers import (
    OK_TRAILERS,
    RESPONSES,
    HeaderDecoder,
    failure_trailers,
    http_response,
    literal,
    percent_encoded,
    read_head,
)
from frontends.grpc.http2.limits import Budget, Limits
from frontends.grpc.http2.liveness import Due, Liveness
from frontends.grpc.http2.messages import Message, MessageReader, Refused, compressed, inflated
from frontends.http.buffers import BodyBuffers

MIB = 1 << 20
REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/test.Echo/Say"),
    (b"content-type", b"application/grpc+proto"),
    (b"te", b"trailers"),
    (b"grpc-timeout", b"100m"),
    (b"grpc-encoding", b"gzip"),
    (b"grpc-accept-encoding", b"identity, deflate,gzip, snappy"),
    (b"user-agent", b"me"),
]


def reader(budget: Budget | None = None, max_nbytes: int = MIB) -> MessageReader:
    return MessageReader(budget or Budget(1 << 40), BodyBuffers(), max_nbytes)


# --------------------------------------------------------------------------------------------------------------- frames


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 2**32 - 1))))
def test_settings(pairs: list[tuple[int, int]]) -> None:
    payload = b"".join(struct.pack(">HI", *pair) for pair in pairs)
    try:
        assert frames.parse_settings(payload) == pairs
    except ConnectionFault:
        assert any(key in (2, 4, 5) for key, _ in pairs)


@given(st.binary(max_size=30), st.integers(0, 255))
def test_header_blocks(payload: bytes, flags: int) -> None:
    try:
        block = frames.header_block(payload, flags)
    except ConnectionFault:
        assert flags & 0x28
    else:
        assert block in payload
        assert flags & 0x28 or block == payload


# -------------------------------------------------------------------------------------------------------------- headers


def test_a_request() -> None:
    head = read_head(REQUEST)
    assert head.method == "/test.Echo/Say"
    assert head.metadata == (("user-agent", "me"),)
    assert (head.timeout_s, head.encoding, head.accepted) == (0.1, "gzip", frozenset(("", "gzip", "deflate")))
    assert (head.http_status, head.failure, head.malformed, head.trailers) == (200, None, False, False)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1H", 3600.0), ("2M", 120.0), ("99999999S", 99999999.0), ("5u", 5e-6), ("7n", 7e-9)]
)
def test_timeouts(text: str, seconds: float) -> None:
    assert read_head([*REQUEST[:4], (b"grpc-timeout", text.encode())]).timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "S", "123456789S", "1 S", "-1S", "1s", "1S\n", "١S"])
def test_timeouts_that_are_none(text: str) -> None:
    head = read_head([*REQUEST[:4], (b"grpc-timeout", text.encode())])
    assert head.malformed or head.failure is not None


def test_headers_that_are_repeated_are_decoded_once() -> None:
    encoder, decoder = hpack.Encoder(), HeaderDecoder()
    first, second = (encoder.encode(REQUEST) for _ in range(2))
    assert decoder.decode(first) == read_head(REQUEST)
    assert decoder.decode(second) is decoder.decode(second)
    # this takes the place of what the second block refers to
    decoder.decode(encoder.encode([*REQUEST[:4], (b"a", b"b")]))
    assert decoder.decode(encoder.encode(REQUEST)) == read_head(REQUEST)


HEADER = st.tuples(
    st.sampled_from([b":path", b":method", b"grpc-timeout", b"a", b"b-bin", b"X", b"te", b"content-type"]),
    st.one_of(st.sampled_from([b"POST", b"1S", b"application/grpc"]), st.binary(max_size=20)),
)


@given(st.lists(st.lists(HEADER, max_size=6), max_size=10), st.integers(0, 300))
def test_the_cache_changes_nothing(requests: list[list[tuple[bytes, bytes]]], table_nbytes: int) -> None:
    """Whatever the table forgets in between."""
    encoder, decoder = hpack.Encoder(), HeaderDecoder()
    encoder.header_table_size = table_nbytes
    for fields in itertools.chain(requests, requests, requests):
        assert decoder.decode(encoder.encode(fields)) == read_head(fields)


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_blocks_of_anything(blocks: list[bytes]) -> None:
    decoder = HeaderDecoder()
    for block in blocks:
        try:
            decoder.decode(block)
        except ConnectionFault as fault:
            assert fault.code == frames.COMPRESSION_ERROR
            return


@given(st.binary(max_size=300), st.binary(max_size=20_000))
def test_literals(name: bytes, value: bytes) -> None:
    assert list(hpack.Decoder().decode(literal(name, value), raw=True)) == [(name, value)]


def decoded(block: bytes) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in hpack.Decoder().decode(block, raw=True)}


@given(st.text())
def test_messages_of_failures(text: str) -> None:
    fields = decoded(failure_trailers(Failure(3, text), begun=True))
    assert fields["grpc-status"] == "3"
    encoded = percent_encoded(text)
    assert fields.get("grpc-message", "").encode() == encoded
    assert all(0x20 <= byte < 0x7F for byte in encoded)


def test_responses() -> None:
    for encoding, block in RESPONSES.items():
        fields = decoded(block)
        assert (fields[":status"], fields["content-type"]) == ("200", "application/grpc")
        assert fields.get("grpc-encoding", "") == encoding
    assert decoded(OK_TRAILERS) == {"grpc-status": "0"}
    assert decoded(http_response(415)) == {":status": "415", "content-length": "0"}


# ------------------------------------------------------------------------------------------------------------- messages


@given(
    st.lists(st.one_of(st.integers(0, 50), st.sampled_from([65536, 65537, 100_000])), min_size=1, max_size=5),
    st.lists(st.one_of(st.integers(1, 9), st.integers(1000, 70_000)), min_size=1).filter(lambda cuts: max(cuts) > 999),
)
@settings(deadline=None)
def test_messages_in_pieces(sizes: list[int], cuts: list[int]) -> None:
    messages = [bytes([i]) * size for i, size in enumerate(sizes)]
    stream = b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)
    budget = Budget(1 << 40)
    found, one, position = [], reader(budget), 0
    for cut in itertools.cycle(cuts):
        stop = min(position + cut, len(stream))
        while position < stop:
            room = one.room(stop - position)
            if room is not None:
                room[:] = stream[position : position + len(room)]
                position += len(room)
                one.received(len(room))
            else:
                position = one.feed(memoryview(stream), position, stop)
            if one.complete:
                found.append(one.take())
        if position == len(stream):
            break
    assert [bytes(message.payload) for message in found] == messages
    assert budget.held_nbytes == sum(sizes) == sum(message.held_nbytes for message in found)


def test_messages_that_are_refused() -> None:
    for prefix in (b"\2\0\0\0\1", b"\0\xff\xff\xff\xff", (MIB + 1).to_bytes(5, "big")):
        with pytest.raises(Refused):
            reader().feed(prefix, 0, 5)
    budget = Budget(10)
    one = reader(budget)
    with pytest.raises(Refused, match="too many"):
        one.feed(b"\0\0\0\0\x0b" + bytes(11), 0, 16)
    one.drop()
    assert budget.held_nbytes == 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@given(data=st.binary(), repeated=st.integers(0, 5000))
def test_compression(encoding: str, data: bytes, repeated: int) -> None:
    budget = Budget(10 * MIB)
    small = compressed(data * repeated, encoding)
    assert budget.take(len(small))
    message = inflated(Message(small, True, len(small)), encoding, budget, 10 * MIB)
    assert (message.payload, message.compressed) == (data * repeated, False)
    assert message.held_nbytes == len(data) * repeated
    assert budget.held_nbytes == message.held_nbytes


def test_inflating_stops_at_the_limit() -> None:
    bomb = zlib.compress(bytes(100 * MIB))
    for budget, limit in ((Budget(50 * MIB), MIB), (Budget(5 * MIB), 50 * MIB)):
        assert budget.take(len(bomb))
        with pytest.raises(Refused):
            inflated(Message(bomb, True, len(bomb)), "deflate", budget, limit)
        assert budget.held_nbytes == 0


# ----------------------------------------------------------------------------------------------------------------- flow


@given(st.lists(st.binary(max_size=5000), min_size=1, max_size=4), st.lists(st.integers(1, 6000), min_size=1))
def test_output(messages: list[bytes], windows: list[int]) -> None:
    output = Output()
    output.head = b"head"
    output.add(messages[:1], False)
    output.add(messages[1:], False)
    output.end = b"end"
    sent = b""
    for window in itertools.cycle(windows):
        sent += b"".join(output.take(7, min(window, output.nbytes), 1000))
        if not output.nbytes:
            break
    assert sent[:4] == b"head" and sent[-3:] == b"end"
    data, rest = b"", sent[4:-3]
    while rest:
        high, low, kind, flags, number = frames.unpack_header(rest)
        assert (kind, flags, number) == (frames.DATA, 0, 7)
        nbytes = high << 8 | low
        assert 0 < nbytes <= 1000
        data += rest[9 : 9 + nbytes]
        rest = rest[9 + nbytes :]
    assert data == b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)


def test_windows() -> None:
    assert widened(-5, 10) == 5
    assert widened(0, frames.MAX_31_BITS) == frames.MAX_31_BITS
    with pytest.raises(ConnectionFault):
        widened(1, frames.MAX_31_BITS)


def test_allowances() -> None:
    allowance = Allowance(3, 10)
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
    allowance.refill(0.21)
    assert [allowance.take() for _ in range(2)] == [True, False]
    allowance.refill(1000)
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]


# ----------------------------------------------------------------------------------------------------------------- time


def test_keepalive() -> None:
    liveness = Liveness(Limits(keepalive_seconds=10, keepalive_timeout_seconds=5, pings_without_data=2), 0)
    assert liveness.check(100, False) is Due.NOTHING  # without calls
    assert liveness.check(100, True) is Due.PING
    assert liveness.check(104, True) is Due.NOTHING
    liveness.heard(104)
    assert liveness.check(113, True) is Due.NOTHING
    assert liveness.check(114, True) is Due.PING
    liveness.heard(115)
    assert liveness.check(130, True) is Due.NOTHING  # two without data: from now on rarely
    assert liveness.check(175, True) is Due.PING
    liveness.heard(176)
    liveness.replied()
    assert liveness.check(186, True) is Due.PING
    assert liveness.check(192, True) is Due.ABORT


def test_pings_of_clients() -> None:
    liveness = Liveness(Limits(min_ping_interval_seconds=10, ping_strikes=2), 0)
    assert [liveness.ping(now, True) for now in (0, 10, 20, 21, 22, 23)] == [True] * 5 + [False]
    liveness.replied()
    assert [liveness.ping(now, False) for now in (100, 150, 200, 250)] == [True] * 3 + [False]


def test_age_and_idleness() -> None:
    old = Liveness(Limits(age_seconds=100), 0)
    assert old.check(89, True) is Due.NOTHING
    assert old.check(111, True) is Due.DRAIN
    assert old.check(112, True) is Due.NOTHING
    idle = Liveness(Limits(idle_seconds=50), 0)
    assert idle.check(40, True) is Due.NOTHING
    assert idle.check(89, False) is Due.NOTHING
    assert idle.check(91, False) is Due.DRAIN
