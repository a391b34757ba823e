"""Who may change or keep which bytes: models that treat their inputs as their own, and clients that read slowly."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import tritonclient.http

from tests.scenarios.harness import Server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[tritonclient.http.InferenceServerClient]:
    connected = tritonclient.http.InferenceServerClient(server.url)
    yield connected
    connected.close()


def infer(client: tritonclient.http.InferenceServerClient, model: str, values: numpy.ndarray) -> numpy.ndarray:
    tensor = tritonclient.http.InferInput("INPUT0", list(values.shape), "INT32")
    tensor.set_data_from_numpy(values)
    answer: numpy.ndarray | None = client.infer(model, [tensor]).as_numpy("OUTPUT0")
    assert answer is not None
    return answer


@pytest.mark.parametrize("elements", [1, 16, 300_000])
def test_model_that_changes_its_input(client: tritonclient.http.InferenceServerClient, elements: int) -> None:
    for number in range(5):
        values = numpy.full([elements], number, dtype=numpy.int32)
        numpy.testing.assert_array_equal(infer(client, "increment", values), values + 1)


@pytest.mark.parametrize("elements", [1, 16, 300_000])
def test_model_that_keeps_its_input(client: tritonclient.http.InferenceServerClient, elements: int) -> None:
    """It answers the array of the request before, whose memory other requests have used since."""
    previous = numpy.full([elements], -1, dtype=numpy.int32)
    infer(client, "keep", previous)
    for number in range(5):
        values = numpy.full([elements], number, dtype=numpy.int32)
        for filler in range(3):
            infer(client, "increment", numpy.full([elements], 1000 + filler, dtype=numpy.int32))
        numpy.testing.assert_array_equal(infer(client, "keep", values), previous)
        previous = values


def echo_request(values: numpy.ndarray) -> bytes:
    header = {
        "inputs": [
            {
                "name": "INPUT0",
                "shape": list(values.shape),
                "datatype": "INT32",
                "parameters": {"binary_data_size": values.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(header).encode()
    head = (
        "POST /v2/models/echo_int32/infer HTTP/1.1\r\nHost: x\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\nContent-Length: {len(text) + values.nbytes}\r\n\r\n"
    )
    return head.encode() + text + values.tobytes()


class SlowReader:
    """Sends requests one behind the other on one connection, and only then begins to read, slowly."""

    def __init__(self, port: int, elements: int, requests: int, first: int) -> None:
        self.expected = [numpy.arange(elements, dtype=numpy.int32) + first + number for number in range(requests)]
        self._socket = socket.socket()
        # a small window: what the server writes stays with the server
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        self._socket.settimeout(20)
        self._socket.connect(("127.0.0.1", port))

    def send(self) -> None:
        for values in self.expected:
            self._socket.sendall(echo_request(values))

    def read(self, pause_s: float) -> list[str]:
        """Reads every answer, pausing between pieces; returns what is wrong."""
        wrong = []
        with self._socket.makefile("rb", buffering=0) as file:
            for number, values in enumerate(self.expected):
                time.sleep(pause_s)
                headers = self._read_head(file)
                body = self._read_exactly(file, int(headers["content-length"]))
                tensor = body[int(headers["inference-header-content-length"]) :]
                if tensor != values.tobytes():
                    wrong.append(f"answer {number} of {len(self.expected)}")
        self._socket.close()
        return wrong

    @staticmethod
    def _read_head(file: socket.SocketIO) -> dict[str, str]:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = file.read(1)
            assert byte, f"closed after {head!r}"
            head += byte
        status, *lines = head.decode().split("\r\n")[:-2]
        assert " 200 " in f"{status} ", head
        return {name.lower(): text for name, text in (line.split(": ", 1) for line in lines)}

    @staticmethod
    def _read_exactly(file: socket.SocketIO, nbytes: int) -> bytes:
        parts, missing = [], nbytes
        while missing:
            part = file.read(min(missing, 1 << 20))
            assert part, f"closed {missing} bytes early"
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("kibibytes", "requests"), [(48, 100), (64, 50), (256, 40), (1024, 16), (4096, 6), (16384, 3)])
def test_slow_readers_that_pipeline(server: Server, kibibytes: int, requests: int) -> None:
    """Every byte is right, although blocks are used again as soon as they are free: two slow connections and a fast one
    that overwrites what was given back."""
    elements = kibibytes * 256
    with ThreadPoolExecutor(6) as pool:
        slow = [SlowReader(server.http_port, elements, requests, first=100_000 * i) for i in range(2)]
        sending = [pool.submit(reader.send) for reader in slow]
        time.sleep(0.2)  # so that answers pile up; not needed for the outcome
        fast = SlowReader(server.http_port, elements, requests, first=-100_000)
        sending.append(pool.submit(fast.send))
        reading = [pool.submit(fast.read, 0.0), *(pool.submit(reader.read, 0.01) for reader in slow)]
        assert [each.result() for each in reading] == [[], [], []]
        assert [each.result() for each in sending] == [None, None, None]
