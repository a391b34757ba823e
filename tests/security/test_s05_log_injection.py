"""S5, logs: one event is one line, whatever a client or a model puts into it, and no log nor list of processes holds
a secret."""

import http.client
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest

from conch.cli.logs import ProcessLogs
from tests.differential.grpc_cases import SERVICE, pb
from tests.frontends.http.wire import wait_until
from tests.processes import command_line, environment
from tests.scenarios.conftest import copy_examples
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import write_model

TOKEN = "kept-to-ourselves-5d1f"
LINE = re.compile(r'([EWI])\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ [\w.<>-]+:\d+\] (".*")')
FORGED = 'E1121 08:29:12.123456 1 server.py:1] "forged"'
#: how an event might get a second line, or a terminal be told what to do
BREAKS = {
    "newline": "\n",
    "carriage return": "\r",
    "CRLF": "\r\n",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "next line": "\x85",
    "vertical tab": "\v",
    "form feed": "\f",
    "record separator": "\x1e",
    "NUL": "\0",
    "ANSI": "\x1b[2J\x1b[1;1H",
    "C1": "\x9b2J",
    "backspace": "\b" * 80,
    "right to left": "\u202e",
    "quote": '"\n',
    "JSON": '"}\n{"level":"fatal"}\n',
}
#: says what it is told, prints it, logs it, and fails with it
TELLTALE = """
class TritonPythonModel:
    def execute(self, requests):
        text = pb_utils.get_input_tensor_by_name(requests[0], "INPUT0").as_numpy()[0].decode()
        pb_utils.Logger.log_error(text)
        print("printed", repr(text))
        raise ValueError(text)
"""
#: answers its environment
ENVIRONMENT = """
class TritonPythonModel:
    def execute(self, requests):
        found = repr(dict(os.environ)) + repr(os.environb)
        answer = numpy.array([found.encode()], dtype=numpy.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", answer)]) for _ in requests]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    """Logs all that it can, and has secrets in its environment."""
    repository = copy_examples(tmp_path_factory.mktemp("logs") / "models", "simple")
    write_model(repository, "tells", TELLTALE, "STRING", [1])
    write_model(repository, "environment", ENVIRONMENT, "STRING", [1])
    secrets = {
        "CONCH_HTTP_RESTRICTED_API": f"shared-memory,trace:admin-key={TOKEN}",
        "CONCH_GRPC_RESTRICTED_PROTOCOL": f"shared-memory,trace:admin-key={TOKEN}",
    }
    flags = ("--log-verbose=1", "--model-control-mode=explicit", "--load-model=*", "--http-header-forward-pattern=.*")
    with serving([repository], make_run_dir(), *flags, "--grpc-header-forward-pattern=.*", **secrets) as running:
        wait_until(running.ready)  # what it shows of the processes' logs looks like its own "Started ..."
        with grpc.insecure_channel(running.grpc_url) as channel:
            grpc.channel_ready_future(channel).result(timeout=10)
        yield running


def logs(server: Server) -> dict[str, str]:
    """By name, of the server's processes and of the models'."""
    folder = server.run_dir / "logs"
    return {path.name: path.read_bytes().decode() for path in folder.rglob("*.log") if path.name != "supervisord.log"}


def well_formed(name: str, text: str) -> list[str]:
    """The messages. Every line, by any reader's idea of a line, is one event of ours."""
    messages = []
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        assert match is not None, (name, line)
        assert line.isprintable(), (name, line)
        messages.append(json.loads(match[2]))
    return messages


def everywhere(server: Server, text: str) -> None:
    """Says ``text`` wherever a client can say something, over both protocols. What is answered does not matter here."""
    tensor = {"name": "INPUT0", "shape": [1], "datatype": "BYTES", "data": [text]}
    region = json.dumps({"key": f"/{text}", "byte_size": 64}).encode()
    admin = {"admin-key": TOKEN}
    quoted = quote(text, safe="")
    for path, body, headers in (
        ("/v2/models/tells/infer", {"id": text, "inputs": [tensor]}, {}),
        ("/v2/models/tells/infer", {"inputs": [{**tensor, "name": text}]}, {}),
        ("/v2/models/tells/infer", {"inputs": [{**tensor, "datatype": text}]}, {}),
        ("/v2/models/tells/infer", {"inputs": [tensor], "parameters": {text: text}}, {}),
        (f"/v2/models/{quoted}/infer", {"inputs": [tensor]}, {}),
        (f"/v2/models/simple?{quoted}", {}, {}),
        (f"/v2/repository/models/{quoted}/load", {}, {}),
        (f"/v2/repository/models/{quoted}/unload", {}, {}),
        ("/v2/repository/models/simple/load", {"parameters": {text: text}}, {}),
        ("/v2/repository/models/simple/load", {"parameters": {"config": text}}, {}),
        ("/v2/repository/models/simple/load", {"parameters": {"config": json.dumps({"name": text})}}, {}),
        (f"/v2/systemsharedmemory/region/{quoted}/register", region, admin),
        (f"/v2/cudasharedmemory/region/{quoted}/register", {"raw_handle": {"b64": text}}, admin),
        ("/v2/logging", {"log_format": text}, {}),
        (f"/v2/models/{quoted}/trace/setting", {"trace_level": [text]}, admin),
        (f"/v2/nowhere/{quoted}", {}, {}),
    ):
        server.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)
    with grpc.insecure_channel(server.grpc_url) as channel:
        infer = pb.ModelInferRequest(model_name="tells", id=text)
        infer.inputs.add(name="INPUT0", datatype="BYTES", shape=[1]).contents.bytes_contents.append(text.encode())
        for method, request in (
            ("ModelInfer", infer),
            ("ModelInfer", pb.ModelInferRequest(model_name=text)),
            ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=text)),
            ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name=text, key=text, byte_size=1)),
        ):
            call = channel.unary_unary(SERVICE + method, lambda message: message.SerializeToString())
            try:
                call(
                    request, timeout=10, metadata=[("triton-grpc-protocol-admin-key", TOKEN), ("x-bin", text.encode())]
                )
            except grpc.RpcError as error:
                assert error.code() is not grpc.StatusCode.UNKNOWN, error


def raw_headers(server: Server, text: bytes) -> None:
    """What an HTTP library would not send."""
    for head in (b"GET /v2/%s HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-A: %s\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=5) as connection:
            connection.sendall(head % text)
            connection.shutdown(socket.SHUT_WR)
            try:
                while connection.recv(65536):
                    pass
            except ConnectionResetError:
                pass


def test_every_event_is_one_line(server: Server) -> None:
    for character in BREAKS.values():
        text = f"begin{character}{FORGED}{character}end"
        everywhere(server, text)
        raw_headers(server, text.encode())
    found = logs(server)
    assert {"broker.log", "http.log", "grpc.log", "launcher.log", "metrics.log"} <= set(found)
    for name, text in found.items():
        # what a model prints is in its own file only
        lines = [line for line in text.splitlines() if not line.startswith("printed ")]
        messages = well_formed(name, "\n".join(lines))
        if name == "tells.log":
            raised = [message for message in messages if "ValueError: begin" in message]
            assert len(raised) >= 2 * len(BREAKS), "one for each request that the model has failed"


def test_what_a_client_sends_is_cut_off(server: Server) -> None:
    """One request cannot fill a disk, and one line can be read."""
    name = "x" * 1_000_000
    server.request("POST", "/v2/models/tells/infer", json.dumps({"id": name, "inputs": []}).encode())
    server.request("POST", "/v2/repository/models/simple/load", json.dumps({"parameters": {"config": name}}).encode())
    server.request("POST", "/v2/logging", json.dumps({"log_format": name}).encode())
    for file, text in logs(server).items():
        assert all(len(line) < 200_000 for line in text.splitlines()), file


def test_the_foreground_shows_nothing_that_steers_a_terminal(server: Server, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shown = ProcessLogs(tmp_path, ["http"], verbose=True)
    text = "".join(BREAKS.values())
    (tmp_path / "models" / "m.log").write_bytes(b"a print " + text.encode() + b"\n\x1b[31mred\x1b[0m\rover it\n")
    (tmp_path / "http.log").write_bytes(b"Traceback \x1b[2J\n")
    lines = shown.take()
    assert all(line.isprintable() for line in lines), lines
    assert all(line.startswith("[m] ") for line in lines if "Traceback" not in line)


def test_no_log_and_no_list_of_processes_holds_a_secret(server: Server) -> None:
    """Neither what was given nor what a client tried, even with everything logged and every header forwarded."""
    wrong = "nearly-" + TOKEN
    for value in (TOKEN, wrong, ""):
        for path in ("/v2/systemsharedmemory/status", "/v2/trace/setting", "/v2/nowhere"):
            server.request("GET", path, headers={"admin-key": value})
        server.request("POST", "/v2/models/simple/infer", b"{}", {"admin-key": value})
        with grpc.insecure_channel(server.grpc_url) as channel:
            call = channel.unary_unary(SERVICE + "SystemSharedMemoryStatus")
            try:
                call(b"", timeout=10, metadata=[("triton-grpc-protocol-admin-key", value)])
            except grpc.RpcError as error:
                assert TOKEN not in str(error.details())
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=5)
    connection.request("GET", "/v2/trace/setting")
    answer = connection.getresponse()
    assert (answer.status, TOKEN in str(answer.headers), TOKEN.encode() in answer.read()) == (403, False, False)
    connection.close()

    supervisord = (server.run_dir / "logs" / "supervisord.log").read_text()
    for name, text in {**logs(server), "serve": server.output, "supervisord.log": supervisord}.items():
        assert TOKEN not in text, name
    for file in server.run_dir.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file
    for pid in server.pids():
        assert TOKEN not in command_line(pid)
    assert TOKEN in environment(server.program_pid("http"))["CONCH_HTTP_RESTRICTED_API"], "it was given to who needs it"


def test_models_are_not_given_the_servers_secrets(server: Server) -> None:
    """In ``os.environ``, which a model may well print or put into an error."""
    tensor = {"name": "INPUT0", "shape": [1], "datatype": "BYTES", "data": ["x"]}
    body = json.dumps({"inputs": [tensor]}).encode()
    status, text = server.request("POST", "/v2/models/environment/infer", body)
    assert status == 200
    assert b"CONCH_RUN_DIR" in text
    assert TOKEN.encode() not in text
