"""S8, doors: with every part of the API restricted there is no way in without the header, over either protocol, by any
spelling. The routes and RPCs are those that there are, so that a new one is tried as well."""

import ast
import http.client
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from conch import restrictions
from conch.categories import Category
from conch.protos import load_service_pb2
from conch.settings import Settings
from frontends.grpc.application import GrpcApplication
from frontends.http.routes import ROUTES, Endpoint, Route
from tests.frontends.http.support import StubRequester
from tests.scenarios.conftest import copy_examples
from tests.scenarios.harness import Server, serving

TOKEN = "open sesame"
NAME = "admin-key"
KEY = f"triton-grpc-protocol-{NAME}"
ALL = ",".join(category.value for category in Category)
WRONG: tuple[dict[str, str], ...] = (
    *({}, {NAME: ""}, {NAME: "open"}, {NAME: TOKEN + "x"}, {NAME: TOKEN.upper()}, {NAME: f'"{TOKEN}"'}),
    *({"admin_key": TOKEN}, {"x-admin-key": TOKEN}, {KEY: TOKEN}, {"authorization": f"Bearer {TOKEN}"}),
    {"cookie": f"{NAME}={TOKEN}"},
)
MESSAGE = "is restricted, expecting header"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = copy_examples(tmp_path_factory.mktemp("doors") / "models", "simple")
    secrets = {
        "CONCH_HTTP_RESTRICTED_API": f"{ALL}:{NAME}={TOKEN}",
        "CONCH_GRPC_RESTRICTED_PROTOCOL": f"{ALL}:{NAME}={TOKEN}",
    }
    with serving([repository], make_run_dir(), "--http-header-forward-pattern=.*", **secrets) as running:
        yield running


# ---------------------------------------------------------------------------------------------------------------- HTTP


def samples(route: Route) -> list[str]:
    """Paths that the route answers, from its pattern: without and with what is optional."""
    found = []
    for optional in ("", r"\1"):
        text = re.sub(r"\(\?:((?:[^()]|\([^()]*\))*)\)\?", optional, route.pattern.pattern.decode())
        for group, value in (("model", "simple"), ("version", "1"), ("repository", "r"), ("region", "x")):
            text = re.sub(rf"\(\?P<{group}>[^)]*\)", value, text)
        text = text.replace("\\.", ".")
        assert route.pattern.fullmatch(text.encode()), (route.endpoint, text)
        found.append(text)
    return sorted(set(found))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.pattern.pattern.decode())
def test_every_route(server: Server, route: Route) -> None:
    assert isinstance(route.category, Category)
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    for path in samples(route):
        for method in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"):
            for headers in WRONG:
                connection.request(method, path, b"{}" if method == "POST" else None, headers)
                response = connection.getresponse()
                text = response.read()
                assert response.status == 403, (method, path, headers, text)
                assert TOKEN.encode() not in text
        for method in (each.decode() for each in route.methods):
            connection.request(method, path, b"{}" if method == "POST" else None, {NAME.upper(): TOKEN})
            response = connection.getresponse()
            response.read()
            assert response.status != 403, (method, path)
    connection.close()


def test_every_endpoint_has_a_route() -> None:
    """What the application could answer but no route leads to would be a door that nobody looks at."""
    assert {route.endpoint for route in ROUTES} == set(Endpoint)


def spellings(path: str) -> list[bytes]:
    """What another server, a proxy or a file system might take for ``path``."""
    first, last = path[1:].split("/", 1)
    encoded = "".join(f"%{ord(each):02x}" for each in path[1:])
    words = path.split("/")
    found = [
        *(path, f"{path}/", f"{path}//", f"/{path}", f"//{path}", f"///{path}", f"/.{path}", f"/./{path}"),
        *(f"/x/..{path}", f"/%2e{path}", f"/%2e%2e{path}", f"/..{path}", f"/../..{path}", f"/v2/..{path}"),
        *(path.replace("/", "//"), path.replace("/", "/./"), path.replace("/", "%2f"), path.replace("/", "%2F")),
        *("/" + path[1:].replace("/", "%2f"), path.replace("/", "\\"), "/" + path[1:].replace("/", "\\")),
        *(
            path.upper(),
            path.title(),
            f"/{first.upper()}/{last}",
            f"/{encoded}",
            f"/{first}/%{ord(last[0]):02x}{last[1:]}",
        ),
        *(
            f"{path}?",
            f"{path}?x=1",
            f"{path}#",
            f"{path}#x",
            f"{path};x=1",
            f"{path}?{NAME}={TOKEN.replace(' ', '+')}",
        ),
        *(f"{path}%00", f"{path}%20", f"{path}%09", f"{path}%0a", f"{path}.", f"{path}..;/", f"{path}.json"),
        *(f"{path}/.", f"{path}/..", f"{path}/x/..", f"{path}/%2e", f"{path}/%2e%2e/{words[-1]}"),
        *(f"http://localhost{path}", f"HTTP://x{path}", f"http://{path}", f"https://a:b@c{path}", f"//localhost{path}"),
        *(f"{path}%2f", f"/v2/health/live/..{path}", f"/v2/health/live/../..{path[3:]}", f"/v2;{path[3:]}", path[1:]),
        *(f"/v2/health/live?{path}", f"/v2/health/live%3f{path}", "*", "", f"/\u2025{path}", f"/ｖ２{path[3:]}"),
    ]
    return [each.encode() for each in found]


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/models/simple/unload", "/v2/logging"])
def test_no_spelling_of_a_path_gets_past(server: Server, path: str) -> None:
    assert len(spellings(path)) >= 40
    more = ("", f"X-Original-URL: {path}\r\n", f"X-Rewrite-URL: {path}\r\nX-HTTP-Method-Override: POST\r\n")
    for target in spellings(path):
        for headers in more:
            head = b"POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: 2\r\nConnection: close\r\n\r\n{}"
            status = answers(server, head % (target, headers.encode()))[0]
            assert 400 <= status < 500, (target, headers, status)


def answers(server: Server, sent: bytes) -> list[int]:
    """The statuses of what comes back until the server closes the connection; [400] if it closes without a word."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionResetError:
            pass
    return [int(each) for each in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)] or [400]


def test_the_header_opens_its_own_request_only(server: Server) -> None:
    """Not the next one on the connection, nor one that it comes too late for."""
    get = b"GET /v2/logging HTTP/1.1\r\nHost: x\r\n%s\r\n"
    token = f"{NAME}: {TOKEN}\r\n".encode()
    assert answers(server, (get % token) + (get % b"") + (get % token) + (get % b"")) == [200, 403, 200, 403]
    chunked = (
        b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n%s\r\n"
    )
    assert answers(server, chunked % token)[0] == 403


# ---------------------------------------------------------------------------------------------------------------- gRPC


def rpcs() -> dict[str, bool]:
    """Method -> whether it is a stream; of every service that Triton's protocol describes."""
    found = {"/grpc.health.v1.Health/Check": False}
    for service in load_service_pb2().DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            found[f"/{service.full_name}/{method.name}"] = method.client_streaming
    return found


def test_there_are_no_rpcs_but_these() -> None:
    application = GrpcApplication(StubRequester(), Settings())
    described = set(rpcs())
    assert set(application.methods) | set(application.streams) <= described
    assert len(described) > 15


def outcome(channel: grpc.Channel, method: str, stream: bool, metadata: list[tuple[str, str]]) -> tuple[str, str]:
    try:
        if stream:
            list(channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=10))
        else:
            channel.unary_unary(method)(b"", metadata=metadata, timeout=10)
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


@pytest.mark.parametrize("method", rpcs())
def test_every_rpc(server: Server, method: str) -> None:
    stream = rpcs()[method]
    wrong = (*(each for each in WRONG if KEY not in each), {NAME: TOKEN}, {KEY: ""}, {KEY: TOKEN + "x"})
    with grpc.insecure_channel(server.grpc_url) as channel:
        for headers in wrong:
            code, text = outcome(channel, method, stream, list(headers.items()))
            if code == "UNIMPLEMENTED":
                continue  # Triton has it, we have not
            assert (code, MESSAGE in text) == ("UNAVAILABLE", True), (headers, code, text)
            assert TOKEN not in text
        code, text = outcome(channel, method, stream, [(KEY, TOKEN)])
        assert MESSAGE not in text
        assert outcome(channel, method, stream, [])[0] in ("UNAVAILABLE", "UNIMPLEMENTED"), "the next one on the line"


@pytest.mark.parametrize(
    "method",
    [
        *("//inference.GRPCInferenceService/RepositoryIndex", "/inference.GRPCInferenceService/RepositoryIndex/"),
        *("/inference.GRPCInferenceService//RepositoryIndex", "/INFERENCE.GRPCInferenceService/RepositoryIndex"),
        *("/inference.GRPCInferenceService/repositoryindex", "/inference.GRPCInferenceService/%52epositoryIndex"),
        *("/x/../inference.GRPCInferenceService/RepositoryIndex", "/GRPCInferenceService/RepositoryIndex"),
        *(
            "/inference.GRPCInferenceService/RepositoryIndex?x",
            "/inference.GRPCInferenceService/ServerLive/../RepositoryIndex",
        ),
    ],
)
def test_no_spelling_of_a_method_gets_past(server: Server, method: str) -> None:
    with grpc.insecure_channel(server.grpc_url) as channel:
        assert outcome(channel, method, False, [])[0] in ("UNAVAILABLE", "UNIMPLEMENTED")


# ------------------------------------------------------------------------------------------------------------- secrets


def test_values_are_compared_in_constant_time() -> None:
    """A wrong value's time says nothing of how much of it is right."""
    tree = ast.parse(Path(restrictions.__file__).read_text())
    check = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "check")
    calls = [ast.unparse(node.func) for node in ast.walk(check) if isinstance(node, ast.Call)]
    compared = [ast.unparse(node) for node in ast.walk(check) if isinstance(node, ast.Compare)]
    assert "hmac.compare_digest" in calls
    assert all(text.endswith("is None") for text in compared)
