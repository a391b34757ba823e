"""A whole server for the security classes, and a look at whether it came through: the same processes, right answers."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import tritonclient.grpc

from tests.scenarios.conftest import copy_examples
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import ECHO, OBEY, write_model

NUMBERS = list(range(16))
SIMPLE = "/v2/models/simple/infer"
ROLES = ("broker", "launcher", "http", "grpc", "metrics")


@pytest.fixture(scope="package")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``simple``, ``numbers`` (UINT8 [-1]) and ``texts`` (STRING [-1]), which answer their input, and ``obey``."""
    folder = copy_examples(tmp_path_factory.mktemp("security") / "models", "simple")
    write_model(folder, "numbers", ECHO, "UINT8")
    write_model(folder, "texts", ECHO, "STRING")
    write_model(folder, "obey", OBEY, "STRING", [1])
    return folder


@pytest.fixture(scope="package")
def server(repository: Path, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    """One server for all tests of this folder, with every API open: models are loaded by request, too. A test leaves it
    as it was, or starts its own."""
    with serving([repository], make_run_dir(), "--model-control-mode=explicit", "--load-model=*") as running:
        yield running


def simple_body() -> bytes:
    """A request to ``simple`` that is right."""
    inputs = [{"name": f"INPUT{i}", "shape": [1, 16], "datatype": "INT32", "data": NUMBERS} for i in (0, 1)]
    return json.dumps({"inputs": inputs}).encode()


def check_answers(server: Server) -> None:
    """A right request on a new connection gets the right answer, over HTTP and over gRPC."""
    status, text = server.request("POST", SIMPLE, simple_body())
    assert status == 200, text
    assert json.loads(text)["outputs"][0]["data"] == [2 * number for number in NUMBERS]
    inputs = [tritonclient.grpc.InferInput(f"INPUT{i}", [1, 16], "INT32") for i in (0, 1)]
    for each in inputs:
        each.set_data_from_numpy(numpy.arange(16, dtype=numpy.int32).reshape(1, 16))
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        answer = client.infer("simple", inputs, client_timeout=10)
    assert answer.as_numpy("OUTPUT0").tolist() == [[2 * number for number in NUMBERS]]


def anonymous_nbytes(pid: int) -> int:
    """What the process has of memory that is its own alone, in RAM."""
    fields = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(next(value for name, _, value in fields if name == "RssAnon").split()[0]) << 10


@dataclass
class Witness:
    """What a server must be after an attack: the processes that it was before, as small as they were, and answering."""

    server: Server
    pids: dict[str, int]
    anonymous: dict[str, int]

    def check(self, grown_nbytes: int) -> None:
        """Nothing has ended, no process of the server's own is larger by more than ``grown_nbytes``, both protocols
        answer."""
        check_answers(self.server)
        assert running(self.server) == self.pids, self.server.report()
        for role in ROLES:
            grown = anonymous_nbytes(self.pids[role]) - self.anonymous[role]
            assert grown <= grown_nbytes, f"{role} has {grown >> 20} MiB more memory than before"


def running(server: Server) -> dict[str, int]:
    """Process identifiers by role, or by instance for workers."""
    report = server.status()
    found = {str(row["name"]): int(row["pid"]) for row in report["processes"] if row["name"] in ROLES}
    return found | {str(row["instance"]): int(row["pid"]) for row in report["instances"]}


@pytest.fixture
def witness(server: Server) -> Witness:
    """Taken when the server has answered already: a first request makes buffers."""
    check_answers(server)
    pids = running(server)
    return Witness(server, pids, {role: anonymous_nbytes(pids[role]) for role in ROLES})
