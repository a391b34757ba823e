"""S10: requests that take far more memory or time than they have bytes, and very many large ones at once."""

import concurrent.futures
import functools
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.differential.grpc_cases import SERVICE, pb
from tests.frontends.grpc.http2 import frame
from tests.scenarios.harness import Server, serving
from tests.security import wire
from tests.security.conftest import NUMBERS, SIMPLE, Witness, anonymous_nbytes, check_answers, running
from tests.security.wire import answer, chunked, head

MIB = 1 << 20
#: the interpreter and the C library keep some of what was used, for the next time: this much, however often
GROWN_NBYTES = 128 * MIB
NUMBERS_PATH = "/v2/models/numbers/infer"
TEXTS_PATH = "/v2/models/texts/infer"
ARENA_NBYTES = 64 * MIB


@functools.cache
def bomb(nbytes: int, wbits: int) -> bytes:
    """So many zeros, a thousandth as large."""
    encoder = zlib.compressobj(9, wbits=wbits)
    parts = [encoder.compress(bytes(MIB)) for _ in range(nbytes // MIB)]
    return b"".join([*parts, encoder.flush()])


GZIP, DEFLATE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", GZIP), ("deflate", DEFLATE)])
def test_bombs(server: Server, witness: Witness, encoding: str, wbits: int) -> None:
    """Four at once. A connection each, and a body in chunks for every other one."""
    body = bomb(128 * MIB, wbits)
    whole = head(NUMBERS_PATH, f"Content-Encoding: {encoding}", f"Content-Length: {len(body)}") + body
    pieces = head(NUMBERS_PATH, f"Content-Encoding: {encoding}", "Transfer-Encoding: chunked")
    pieces += chunked(body[i : i + 65536] for i in range(0, len(body), 65536))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for status, text in pool.map(lambda sent: answer(server, sent), (whole, pieces) * 2):
            assert status == 400, text
            assert b"Decompressed data size exceeds the maximum allowed value of 67108864 bytes" in text
    witness.check(GROWN_NBYTES)


def test_encodings_within_encodings(server: Server, witness: Witness) -> None:
    """One is taken off at most."""
    nested = body = gzip.compress(bomb(128 * MIB, GZIP), 9)
    for encoding in ("br", "gzip, gzip", "gzip,br", "zstd", "compress", "x-gzip"):
        sent = head(NUMBERS_PATH, f"Content-Encoding: {encoding}", f"Content-Length: {len(body)}") + body
        assert answer(server, sent) == (501, b'{"error":"Unsupported compression type"}'), encoding
    for _ in range(3):
        headers = ("Content-Encoding: gzip", f"Content-Length: {len(nested)}")
        status, text = answer(server, head(NUMBERS_PATH, *headers) + nested)
        assert status == 500 and b"failed to parse the request JSON buffer" in text
        nested = gzip.compress(nested)
    # other routes know no encodings
    for path in ("/v2/models/texts/generate", "/v2/repository/index", "/v2/logging"):
        status, text = answer(server, head(path, "Content-Encoding: gzip", f"Content-Length: {len(body)}") + body)
        assert status in (400, 500), (path, text)
    witness.check(GROWN_NBYTES)


MANY = 300_000


def tensor(data: str, datatype: str = "UINT8", count: int = MANY) -> str:
    return f'{{"inputs":[{{"name":"INPUT0","datatype":"{datatype}","shape":[{count}],"data":{data}}}]}}'


GOOD = [{"name": f"INPUT{i}", "shape": [1, 16], "datatype": "INT32", "data": NUMBERS} for i in (0, 1)]


def inputs(entries: list[Any], **more: Any) -> str:
    return json.dumps({"inputs": entries, **more})


def outputs(entries: list[Any]) -> str:
    return inputs(GOOD, outputs=entries)


def parameters(found: dict[str, Any]) -> str:
    return inputs(GOOD, parameters=found)


#: path, body, statuses; HTTP 500 is Triton's for JSON of the wrong type
LARGE_JSON: dict[str, tuple[str, Callable[[], str], set[int]]] = {
    "floats for bytes": (NUMBERS_PATH, lambda: tensor("[" + "1.5," * (MANY - 1) + "1.5]"), {500}),
    "numbers of another type": (NUMBERS_PATH, lambda: tensor("[" + "1," * (MANY - 1) + "1]", "FP64"), {400}),
    "fewer than declared": (NUMBERS_PATH, lambda: tensor("[1]"), {500}),
    "more than declared": (NUMBERS_PATH, lambda: tensor("[" + "1," * (MANY - 1) + "1]", count=1), {500}),
    "one in each array": (NUMBERS_PATH, lambda: tensor("[" + "[1]," * (MANY - 1) + "[1]]"), {200}),
    "empty arrays": (NUMBERS_PATH, lambda: tensor("[" + "[]," * (MANY - 1) + "[]]"), {400, 500}),
    "three million arrays": (NUMBERS_PATH, lambda: tensor("[" + "[]," * 3_000_000 + "[]]"), {400}),
    "empty texts": (TEXTS_PATH, lambda: tensor("[" + '"",' * (MANY - 1) + '""]', "BYTES"), {200}),
    "numbers of many digits": (NUMBERS_PATH, lambda: tensor("[" + "9" * 10_000_000 + "]", count=1), {400, 500}),
    "very many dimensions": (
        NUMBERS_PATH,
        lambda: tensor("[1]").replace(f"[{MANY}]", "[" + "9223372036854775807," * (MANY - 1) + "1]"),
        {400},
    ),
    "20,000 unknown outputs": (SIMPLE, lambda: outputs([{"name": f"OUT{i}"} for i in range(20_000)]), {400}),
    "20,000 times one output": (SIMPLE, lambda: outputs([{"name": "OUTPUT0"}] * 20_000), {400}),
    "20,000 inputs": (
        SIMPLE,
        lambda: json.dumps(
            {"inputs": [{"name": f"I{i}", "shape": [], "datatype": "INT8", "data": []} for i in range(20_000)]}
        ),
        {400},
    ),
    "most classes": (
        SIMPLE,
        lambda: outputs([{"name": "OUTPUT0", "parameters": {"classification": 2**64 - 1}}]),
        {200},
    ),
    "too many classes": (
        SIMPLE,
        lambda: outputs([{"name": "OUTPUT0", "parameters": {"classification": 2**64}}]),
        {500},
    ),
    "10,000 parameters": (SIMPLE, lambda: parameters({f"p{i}": "x" * 100 for i in range(10_000)}), {400}),
    "a parameter of 10 MiB": (SIMPLE, lambda: parameters({"p": "x" * (10 * MIB)}), {400}),
    "an id of 10 MiB": (SIMPLE, lambda: inputs(GOOD, id="x" * (10 * MIB)), {400}),
    "one name very often": (NUMBERS_PATH, lambda: "{" + '"inputs":[],' * MANY + '"id":""}', {400}),
}


@pytest.mark.timeout(120)
def test_large_json(server: Server, witness: Witness) -> None:
    for name, (path, body, statuses) in LARGE_JSON.items():
        text = body().encode()
        status, answered = answer(server, head(path, f"Content-Length: {len(text)}") + text)
        assert status in statuses, (name, status, answered[:500])
        check_answers(server)
    witness.check(GROWN_NBYTES)


def field(number: int, data: bytes) -> bytes:
    length = bytearray()
    nbytes = len(data)
    while nbytes > 0x7F:
        length.append(nbytes & 0x7F | 0x80)
        nbytes >>= 7
    return bytes([number << 3 | 2]) + bytes(length) + bytes([nbytes]) + data


SMALL = 4 * MIB
#: method and message: each would take protobuf seconds, and up to 40 times its size
LARGE_GRPC: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty inputs": ("ModelInfer", lambda: b"\x2a\x00" * (SMALL // 2)),
    "empty outputs": ("ModelInfer", lambda: b"\x32\x00" * (SMALL // 2)),
    "empty parameters": ("ModelInfer", lambda: b"\x22\x00" * (SMALL // 2)),
    "empty tensors": ("ModelInfer", lambda: b"\x3a\x00" * (SMALL // 2)),
    "behind a field that is not known": ("ModelInfer", lambda: b"\xba\x3e\x00" + b"\x2a\x00" * (SMALL // 2)),
    "empty texts": (
        "ModelInfer",
        lambda: field(5, field(1, b"INPUT0") + field(2, b"BYTES") + field(5, b"\x42\x00" * (66 * MIB // 2))),
    ),
    "files of a load": ("RepositoryModelLoad", lambda: b"\x1a\x00" * (SMALL // 2)),
    "values of a setting": ("TraceSetting", lambda: field(1, field(1, b"x") + field(2, b"\x0a\x00" * (SMALL // 2)))),
    "a name": ("ModelMetadata", lambda: field(1, b"x" * SMALL)),
}


@pytest.mark.timeout(60)
def test_large_grpc_messages(server: Server, witness: Witness) -> None:
    with grpc.insecure_channel(server.grpc_url, [("grpc.max_send_message_length", -1)]) as channel:
        for name, (method, message) in LARGE_GRPC.items():
            with pytest.raises(grpc.RpcError) as raised:
                channel.unary_unary(SERVICE + method)(message(), timeout=20)
            assert raised.value.code().name == "INVALID_ARGUMENT", (name, raised.value.details())
            check_answers(server)
    witness.check(GROWN_NBYTES)


@pytest.mark.timeout(60)
def test_loads_that_fail(server: Server, witness: Witness) -> None:
    """Of large files, which nobody keeps."""
    request = pb.RepositoryModelLoadRequest(model_name="nope")
    request.parameters["config"].string_param = "{}"
    request.parameters["file:1/model.py"].bytes_param = bytes(48 * MIB)
    payload = request.SerializeToString()
    with grpc.insecure_channel(server.grpc_url, [("grpc.max_send_message_length", -1)]) as channel:
        for _ in range(4):
            with pytest.raises(grpc.RpcError) as raised:
                channel.unary_unary(SERVICE + "RepositoryModelLoad")(payload, timeout=20)
            assert "nope" in (raised.value.details() or "")
    assert server.request("POST", "/v2/repository/models/nope/unload", b"{}")[0] == 200
    witness.check(GROWN_NBYTES)


# ------------------------------------------------------------------------------------------------------- all at once


@pytest.fixture(scope="module")
def small(repository: Path, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    """A server with little memory for what clients send and for answers."""
    flags = (f"--frontend-arena-nbytes={ARENA_NBYTES}", f"--worker-arena-nbytes={ARENA_NBYTES}")
    with serving([repository], make_run_dir(), *flags) as started:
        yield started


def numbers_message(nbytes: int) -> bytes:
    message = pb.ModelInferRequest(model_name="numbers", raw_input_contents=[bytes(nbytes)])
    message.inputs.add(name="INPUT0", datatype="UINT8", shape=[nbytes])
    encoded: bytes = message.SerializeToString()
    return encoded


@pytest.mark.timeout(60)
def test_more_uploads_than_there_is_memory_for(small: Server) -> None:
    """Sixteen times 24 MiB where 64 are: each is answered with its bytes or told to come again, on both protocols."""
    before = running(small)
    nbytes = 24 * MIB
    shown = {"name": "INPUT0", "datatype": "UINT8", "shape": [nbytes], "parameters": {"binary_data_size": nbytes}}
    text = json.dumps({"inputs": [shown], "parameters": {"binary_data_output": True}}).encode()
    lengths = (f"Content-Length: {len(text) + nbytes}", f"Inference-Header-Content-Length: {len(text)}")
    sent = head(NUMBERS_PATH, *lengths) + text + bytes(nbytes)

    def over_http(_: int) -> str:
        status, body = answer(small, sent)
        assert status == 503 or len(body) > nbytes, (status, body[:500])
        return str(status)

    message = numbers_message(nbytes)

    def over_grpc(_: int) -> str:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(small.grpc_url, [*options, ("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                channel.unary_unary(wire.INFER)(message, timeout=30)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        http_answers = set(pool.map(over_http, range(16)))
        grpc_answers = set(pool.map(over_grpc, range(16)))
    assert http_answers <= {"200", "503"} and "200" in http_answers, http_answers
    assert grpc_answers <= {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE"} and "OK" in grpc_answers, grpc_answers
    check_answers(small)
    assert running(small) == before
    # everything has been given back: the largest request fits as before
    assert over_http(0) == "200" and over_grpc(0) == "OK"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", [wire.INFER, wire.STREAM_INFER])
def test_grpc_bombs(small: Server, path: str) -> None:
    """A message is limited as it is sent and as it is inflated."""
    check_answers(small)
    before, pid = running(small), small.program_pid("grpc")
    anonymous = anonymous_nbytes(pid)
    for encoding, wbits in (("gzip", GZIP), ("deflate", DEFLATE)):
        data = wire.prefixed(bomb(128 * MIB, wbits), compressed=True)
        frames = b"".join(frame(wire.DATA, 0, 1, data[i : i + 16384]) for i in range(0, len(data), 16384))
        for _ in range(2):
            sent = wire.begin(1, path, (b"grpc-encoding", encoding.encode())) + frames
            told = wire.talk_http2(small, sent + frame(wire.DATA, wire.END_STREAM, 1), lambda told: 1 in told.ended)
            assert told.gone is None
            assert b"larger than max" in told.headers[1] or b"grpc-status\x018" in told.headers[1]
    with grpc.insecure_channel(small.grpc_url, [("grpc.max_send_message_length", -1)]) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(wire.INFER)(bytes(ARENA_NBYTES + 1), timeout=20)
        assert raised.value.code().name == "RESOURCE_EXHAUSTED"
    check_answers(small)
    assert running(small) == before
    assert anonymous_nbytes(pid) - anonymous < GROWN_NBYTES
