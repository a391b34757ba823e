"""Answers that are borrowed from a worker's memory, read slowly: every byte is right although the memory is overwritten
the moment that it is given back."""

import json
import random
import socket
import threading
import time

import numpy as np
import pytest

from tests.frontends.http.support import Frontend

SIZES = (48 << 10, 64 << 10, 65 << 10, 300 << 10, 2 << 20, 16 << 20)


def request(seed: int, nbytes: int) -> tuple[bytes, bytes]:
    """A request to echo ``nbytes`` that ``seed`` determines, and these bytes."""
    blob = np.random.default_rng(seed).integers(0, 255, nbytes, np.uint8).tobytes()
    shown = {"name": "INPUT0", "shape": [nbytes], "datatype": "UINT8", "parameters": {"binary_data_size": nbytes}}
    header = json.dumps({"id": str(seed), "inputs": [shown], "parameters": {"binary_data_output": True}}).encode()
    lines = (
        "POST /v2/models/echo_uint8/infer HTTP/1.1",
        f"Content-Length: {len(header) + nbytes}",
        f"Inference-Header-Content-Length: {len(header)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + header + blob, blob


class SlowReader:
    """Reads in pieces of random size with pauses, through a small receive buffer."""

    def __init__(self, port: int, seed: int) -> None:
        self.connection = socket.socket()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        self.connection.settimeout(20)
        self.connection.connect(("127.0.0.1", port))
        self._random = random.Random(seed)
        self._buffered = bytearray()

    def _more(self) -> None:
        if self._random.random() < 0.02:
            time.sleep(0.002)
        chunk = self.connection.recv(self._random.choice((1000, 10_000, 200_000)))
        assert chunk
        self._buffered += chunk

    def response(self) -> tuple[dict[str, str], bytes]:
        while b"\r\n\r\n" not in self._buffered:
            self._more()
        head, _, rest = bytes(self._buffered).partition(b"\r\n\r\n")
        self._buffered = bytearray(rest)
        lines = head.decode().split("\r\n")
        assert lines[0] == "HTTP/1.1 200 OK"
        headers = dict(line.lower().split(": ") for line in lines[1:])
        while len(self._buffered) < int(headers["content-length"]):
            self._more()
        body = bytes(self._buffered[: int(headers["content-length"])])
        del self._buffered[: len(body)]
        return headers, body


def check(reader: SlowReader, seed: int, blob: bytes) -> None:
    headers, body = reader.response()
    nbytes = int(headers["inference-header-content-length"])
    assert json.loads(body[:nbytes])["id"] == str(seed)
    assert body[nbytes:] == blob


@pytest.mark.timeout(60)
@pytest.mark.parametrize("nbytes", SIZES)
def test_pipelined_responses(nbytes: int) -> None:
    answers = max(3, min(40, (24 << 20) // nbytes))
    with Frontend() as frontend:
        reader = SlowReader(frontend.port, nbytes)
        requests = [request(seed, nbytes) for seed in range(answers)]
        sender = threading.Thread(target=reader.connection.sendall, args=(b"".join(sent for sent, _ in requests),))
        sender.start()
        for seed, (_, blob) in enumerate(requests):
            check(reader, seed, blob)
        sender.join()
        reader.connection.close()


@pytest.mark.timeout(60)
def test_many_slow_readers_and_one_that_leaves() -> None:
    """Connections in all stages at once; a reader that breaks off in the middle takes nobody's bytes along."""
    with Frontend() as frontend:
        failures: list[BaseException] = []

        def read(number: int) -> None:
            try:
                reader = SlowReader(frontend.port, number)
                randomness = random.Random(number)
                for seed in range(number * 100, number * 100 + 6):
                    sent, blob = request(seed, randomness.choice(SIZES[:-1]))
                    reader.connection.sendall(sent)
                    if number % 4 == 3 and seed % 100 == 4:
                        reader.connection.recv(1000)
                        break
                    check(reader, seed, blob)
                reader.connection.close()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        deadline = time.monotonic() + 5
        while frontend.engine.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert frontend.requester.borrowed == frontend.requester.released > 8
