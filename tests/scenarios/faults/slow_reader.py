"""A client that has asked for a large answer and does not read it yet."""

import http.client
import json
import socket
from types import TracebackType
from typing import Self

from tests.scenarios.harness import Server

TIMEOUT_S = 15.0


class SlowReader:
    """``with SlowReader(server, "large 8") as reader``: one request of the model ``victim`` over HTTP, whose answer
    comes in binary, straight from the worker's memory."""

    def __init__(self, server: Server, text: str, model: str = "victim") -> None:
        tensor = {"name": "INPUT0", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
        body = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        self._connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=TIMEOUT_S)
        self._connection.request("POST", f"/v2/models/{model}/infer", body)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def wait_for_its_beginning(self) -> None:
        """Of the answer: the rest, far more than the kernel buffers, waits in the frontend."""
        assert self._connection.sock is not None
        assert self._connection.sock.recv(1, socket.MSG_PEEK)

    def rest(self) -> bytes:
        """The string that was answered, all of it. Fails if the status is another than 200."""
        response = self._connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        return body[int(response.headers["Inference-Header-Content-Length"]) + 4 :]
