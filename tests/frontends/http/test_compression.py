"""Compressed bodies."""

import gzip
import json
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.http

from conch.errors import InvalidArgument, TooLarge
from frontends.http.compression import decompressed, preference
from tests.frontends.http.support import MAX_INPUT_NBYTES, Frontend, simple_request, tensor
from tests.frontends.http.test_slow_reader import request as echo_request
from tests.frontends.http.wire import wait_until

DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}
LARGE = 3 << 20


def test_decompression() -> None:
    body = b"x" * 1000
    assert decompressed(gzip.compress(body), b"gzip", 1000) == body
    assert decompressed(zlib.compress(body), b"deflate", 1000) == body
    with pytest.raises(TooLarge, match="Decompressed data size exceeds the maximum allowed value of 999 bytes"):
        decompressed(gzip.compress(body), b"gzip", 999)
    for broken in (body, gzip.compress(body)[:-9], b""):
        with pytest.raises(InvalidArgument):
            decompressed(broken, b"gzip", 1000)


@pytest.mark.parametrize(
    ("accepted", "preferred"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate,gzip", "deflate"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0.8,deflate;q=0.8", "gzip"),
        ("gzip ; q=0.5", "gzip"),
        ("br, gzip;q=0.1", "gzip"),
        ("gzip, ", "gzip"),
        ("gzip;q=0", ""),
        ("gzip;q=x", ""),
        ("gzip;q=0.5,identity", ""),
        ("identity,gzip", ""),
        ("x-gzip", ""),
        ("*", ""),
        ("", ""),
        (";q=1,,=;", ""),
        ("deflate;q=-1", ""),
        ("gzip;q=nan", ""),
    ],
)
def test_preference(accepted: str, preferred: str) -> None:
    assert preference(accepted.encode()) == preferred.encode()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_small_response(frontend: Frontend, encoding: str) -> None:
    body = json.dumps(simple_request())
    plain = frontend.request("POST", "/v2/models/simple/infer", body)
    status, headers, text = frontend.request(
        "POST", "/v2/models/simple/infer", body, {"Accept-Encoding": f"{encoding};q=0.9"}
    )
    assert (status, headers["content-encoding"], headers["content-type"]) == (200, encoding, "application/json")
    assert DECOMPRESS[encoding](text) == plain[2]
    assert "content-encoding" not in plain[1]


def test_errors_and_other_endpoints_are_not_compressed(frontend: Frontend) -> None:
    accept = {"Accept-Encoding": "gzip"}
    for method, path, body in (
        ("POST", "/v2/models/simple/infer", b"{"),
        ("POST", "/v2/models/nope/infer", b"{}"),
        ("GET", "/v2/models/simple", None),
        ("POST", "/v2/models/echo_int32/generate", b'{"INPUT0":1}'),
    ):
        _, headers, text = frontend.request(method, path, body, accept)
        assert "content-encoding" not in headers
        json.loads(text.removeprefix(b"data: "))


@pytest.mark.parametrize("encoding", ["foo", "br", "gzip, deflate"])
def test_unknown_encoding(frontend: Frontend, encoding: str) -> None:
    status, headers, text = frontend.request("POST", "/v2/models/simple/infer", b"{", {"Content-Encoding": encoding})
    assert (status, text) == (501, b'{"error":"Unsupported compression type"}')
    assert headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("nbytes", [10, LARGE])
def test_large_binary_response(frontend: Frontend, nbytes: int) -> None:
    """What was borrowed is overwritten when it is given back, so it must have been compressed before."""
    sent, blob = echo_request(1, nbytes)
    head, _, body = sent.partition(b"\r\n\r\n")
    length = head.split(b"Inference-Header-Content-Length: ")[1].decode()
    headers = {"Inference-Header-Content-Length": length, "Accept-Encoding": "gzip"}
    _, answered, text = frontend.request("POST", "/v2/models/echo_uint8/infer", body, headers)
    assert answered["content-encoding"] == "gzip"
    text = gzip.decompress(text)
    json_nbytes = int(answered["inference-header-content-length"])
    assert text[json_nbytes:] == blob
    assert json.loads(text[:json_nbytes])["id"] == "1"


@pytest.mark.parametrize("algorithms", [("gzip", None), (None, "gzip"), ("deflate", "deflate"), ("deflate", "gzip")])
@pytest.mark.parametrize("elements", [16, 200_000])
def test_official_client(frontend: Frontend, elements: int, algorithms: tuple[str | None, str | None]) -> None:
    numbers = np.arange(elements, dtype=np.int32)
    put = tritonclient.http.InferInput("INPUT0", [elements], "INT32").set_data_from_numpy(numbers)
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{frontend.port}") as client:
        result = client.infer(
            "echo_int32",
            [put],
            request_compression_algorithm=algorithms[0],
            response_compression_algorithm=algorithms[1],
        )
        assert np.array_equal(result.as_numpy("OUTPUT0"), numbers)


@pytest.mark.parametrize("broken", [b"nonsense" * 10, b"nonsense" * 10_000, gzip.compress(bytes(100_000))[:-9]])
def test_broken_bodies(frontend: Frontend, broken: bytes) -> None:
    status, answer = frontend.infer("simple", broken, {"Content-Encoding": "gzip"})
    assert status == 400 and "the request body is not" in answer["error"]


def test_limit_after_decompression(frontend: Frontend) -> None:
    for level in (0, 9):
        body = gzip.compress(bytes(MAX_INPUT_NBYTES + 1), level)
        status, answer = frontend.infer("simple", body, {"Content-Encoding": "gzip"})
        assert status == 400
        limit = f"exceeds the maximum allowed value of {MAX_INPUT_NBYTES} bytes"
        assert limit in answer["error"] or "exceeds the maximum allowed input size" in answer["error"]


def test_errors_after_decompression(frontend: Frontend) -> None:
    body = gzip.compress(json.dumps({"inputs": [], "pad": [str(i) for i in range(5000)]}).encode())
    assert len(body) > 4096
    status, answer = frontend.infer("simple", body, {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"})
    assert status == 400 and "expected 2 inputs but got 0" in answer["error"]


def _held(seed: int) -> dict[str, Any]:
    return {"inputs": [tensor("INPUT0", "INT32", [1], [seed])], "pad": [str(i) for i in range(5000)]}


@pytest.mark.parametrize("compressed", [False, True])
def test_a_client_that_goes_cancels(frontend: Frontend, compressed: bool) -> None:
    cancelled = frontend.requester.cancelled
    body = json.dumps(_held(1)).encode()
    headers = b"Accept-Encoding: gzip\r\n"
    if compressed:
        body, headers = gzip.compress(body), headers + b"Content-Encoding: gzip\r\n"
    with frontend.connect() as connection:
        lines = b"POST /v2/models/held/infer HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (headers, len(body))
        connection.sendall(lines + body)
        wait_until(lambda: bool(frontend.requester.held))
    wait_until(lambda: frontend.requester.cancelled == cancelled + 1)
    frontend.do(frontend.requester.finish_held)


def test_a_client_that_goes_while_its_answer_is_compressed(frontend: Frontend) -> None:
    """The memory is given back after the thread has read it."""
    sent, _ = echo_request(1, 16 << 20)
    sent = sent.replace(b"\r\n", b"\r\nAccept-Encoding: gzip\r\n", 1)
    borrowed = frontend.requester.borrowed
    with frontend.connect() as connection:
        connection.sendall(sent)
        wait_until(lambda: frontend.requester.borrowed == borrowed + 1)
    wait_until(lambda: frontend.requester.released == borrowed + 1, 10)


def test_others_are_served_meanwhile(frontend: Frontend) -> None:
    sent, _ = echo_request(1, 32 << 20)
    sent = sent.replace(b"\r\n", b"\r\nAccept-Encoding: gzip\r\n", 1)
    borrowed = frontend.requester.borrowed
    with frontend.connect() as connection:
        sender = threading.Thread(target=connection.sendall, args=(sent,))
        sender.start()
        wait_until(lambda: frontend.requester.borrowed == borrowed + 1, 10)
        answers = 0
        while frontend.requester.released == borrowed:
            assert frontend.request("GET", "/v2/health/live")[0] == 200
            answers += 1
        sender.join()
        assert answers > 5
        assert connection.recv(12) == b"HTTP/1.1 200"
