"""S12, tasks and states: a request that its client gives up at any moment ends once, and leaves nothing behind. (A
thousand cancelled streams: ``tests/scenarios/test_decoupled_streams.py``.)"""

import http.client
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from conch.run_dir import RunDir
from tests.differential.grpc_cases import SERVICE, pb
from tests.scenarios.harness import Server
from tests.security.conftest import Witness

REQUESTS = 500
CLIENTS = 8
LARGE_NBYTES = 1 << 20
GROWN_NBYTES = 64 << 20
#: what no log may hold: a task that nobody has asked for its end, and whatever else nobody has thought of
UNOWNED = re.compile(r"never retrieved|never awaited|was destroyed|Traceback|internal error|AssertionError|Unhandled")


def body_of(model: str, text: str) -> tuple[bytes, dict[str, str]]:
    if model == "obey":
        tensor = {"name": "INPUT0", "shape": [1], "datatype": "BYTES", "data": [text]}
        return json.dumps({"inputs": [tensor]}).encode(), {}
    size = {"binary_data_size": LARGE_NBYTES}
    large = {"name": "INPUT0", "shape": [LARGE_NBYTES], "datatype": "UINT8", "parameters": size}
    output = {"name": "OUTPUT0", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [large], "outputs": [output]}).encode()
    return head + bytes(LARGE_NBYTES), {"Inference-Header-Content-Length": str(len(head))}


def http_request(server: Server, choice: random.Random) -> str:
    """One request, given up somewhere on its way, or not: ``completed``, ``cancelled``, or why it failed."""
    model = choice.choice(("obey", "obey", "numbers"))
    body, headers = body_of(model, f"sleep {choice.choice((0, 0.001, 0.01))}")
    lines = {"Host": "x", "Content-Length": str(len(body)), **headers}
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\n" + "".join(f"{key}: {lines[key]}\r\n" for key in lines) + "\r\n"
    data = head.encode() + body
    point = choice.choice(("before", "head", "upload", "queued", "running", "answer", "reset", "never"))
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as connection:
        if point == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sent = {"before": 0, "head": len(head) // 2, "upload": len(head) + len(body) // 2}.get(point, len(data))
        try:
            connection.sendall(data[:sent])
            if point in ("running", "reset"):
                time.sleep(choice.random() / 100)
            if point == "answer":
                connection.recv(1)
            if point != "never":
                return "cancelled"
            response = http.client.HTTPResponse(connection)
            response.begin()
            text = response.read()
        except (ConnectionError, http.client.HTTPException) as error:
            return f"at '{point}': {error!r}"
        return "completed" if response.status == 200 else f"{response.status}: {text!r}"


def grpc_request(channel: grpc.Channel, choice: random.Random) -> str:
    """Likewise."""
    message = pb.ModelInferRequest(model_name="obey")
    tensor = message.inputs.add(name="INPUT0", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(f"sleep {choice.choice((0, 0.001, 0.01))}".encode())
    if choice.random() < 0.3:
        message = pb.ModelInferRequest(model_name="numbers", raw_input_contents=[bytes(LARGE_NBYTES)])
        message.inputs.add(name="INPUT0", datatype="UINT8", shape=[LARGE_NBYTES])
    point = choice.choice(("at once", "later", "deadline", "never"))
    timeout_s = choice.random() / 100 if point == "deadline" else 20
    call = channel.unary_unary(SERVICE + "ModelInfer").future(message.SerializeToString(), timeout=timeout_s)
    if point == "later":
        time.sleep(choice.random() / 100)
    if point in ("at once", "later"):
        call.cancel()
    try:
        call.result()
    except grpc.FutureCancelledError:
        return "cancelled"
    except grpc.RpcError as error:
        # the server may be the first to see it
        late = error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
        late = late or error.details() == "Request timeout expired"
        return "cancelled" if late and point == "deadline" else f"at '{point}': {error.code()}: {error.details()}"
    return "completed"


@contextmanager
def loading_and_unloading(server: Server) -> Iterator[None]:
    """Of a model that nobody else asks."""
    over = threading.Event()
    problems = []

    def run() -> None:
        while not over.is_set():
            for action in ("unload", "load"):
                status, text = server.request("POST", f"/v2/repository/models/texts/{action}", b"{}", timeout_s=20)
                if status != 200:
                    problems.append(text)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not problems


def idle(server: Server) -> bool:
    report = server.status()
    return not any(row["inflight"] for row in report["processes"]) and not any(
        row["queued"] or row["running"] for row in report["models"]
    )


@pytest.mark.timeout(90)
def test_requests_that_are_given_up(server: Server, witness: Witness) -> None:
    """A thousand, unary, half over HTTP, half over gRPC, while a model comes and goes."""
    outcomes: dict[str, Counter[str]] = {"http": Counter(), "grpc": Counter()}
    with (
        loading_and_unloading(server),
        grpc.insecure_channel(server.grpc_url, [("grpc.max_receive_message_length", -1)]) as channel,
        ThreadPoolExecutor(CLIENTS) as clients,
    ):
        over_http = [clients.submit(http_request, server, random.Random(number)) for number in range(REQUESTS)]
        over_grpc = [clients.submit(grpc_request, channel, random.Random(number)) for number in range(REQUESTS)]
        outcomes["http"].update(each.result() for each in over_http)
        outcomes["grpc"].update(each.result() for each in over_grpc)
    for protocol, found in outcomes.items():
        assert set(found) == {"completed", "cancelled"}, (protocol, found)
        assert found["completed"] > 30 and found["cancelled"] > 100, (protocol, found)
        assert found.total() == REQUESTS
    deadline = time.monotonic() + 10
    while not idle(server):
        assert time.monotonic() < deadline, server.report()
        time.sleep(0.05)

    witness_of_texts = server.worker_pids("texts")
    for instance in [name for name in witness.pids if name.startswith("texts")]:
        witness.pids[instance] = witness_of_texts[0]  # it has been loaded again
    witness.check(GROWN_NBYTES)
    logs = (server.run_dir / "logs").glob("*.log")
    for path in (*logs, RunDir(server.run_dir).model_log("texts")):  # other tests' models may have raised
        found_text = UNOWNED.search(path.read_text(errors="replace"))
        assert found_text is None, (path.name, found_text)
