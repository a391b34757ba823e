"""Workers that are killed, at every moment of their lives: whoever waits is answered, and nobody else notices."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scenarios.conftest import copy_examples
from tests.scenarios.decoupled import TELL, Stream, telling, text_of, write_decoupled_model
from tests.scenarios.faults.clients import Clients, assert_right, inferences, metric, wait_for_queued
from tests.scenarios.faults.models import say, write_victim
from tests.scenarios.faults.slow_reader import SlowReader
from tests.scenarios.faults.watch import Watch, watching, workers
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import write_model

BACK_WITHIN_S = 5.0
KILLS = 5
STRINGS = {"IN": ("STRING", 1)}, {"OUT": ("STRING", 1)}

# While there is a file "hold initialize" or "hold finalize" beside it, it stays there, and says its pid in a file.
GATED = """
class TritonPythonModel:
    def initialize(self, args):
        self.folder = args["model_repository"]
        self.pass_gate("initialize")

    def pass_gate(self, name):
        if os.path.exists(f"{self.folder}/hold {name}"):
            with open(f"{self.folder}/new", "w") as file:
                file.write(str(os.getpid()))
            os.rename(f"{self.folder}/new", f"{self.folder}/{name}")
        while os.path.exists(f"{self.folder}/hold {name}"):
            time.sleep(0.005)

    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "INPUT0") for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", tensor.as_numpy())]) for tensor in tensors]

    def finalize(self):
        self.pass_gate("finalize")
"""

# Answers what the model "callee" answers.
CALLER = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.ask(pb_utils.get_input_tensor_by_name(request, "INPUT0")) for request in requests]

    def ask(self, tensor):
        answer = pb_utils.InferenceRequest(
            model_name="callee", requested_output_names=["OUTPUT0"], inputs=[tensor]
        ).exec()
        if answer.has_error():
            return pb_utils.InferenceResponse(error=answer.error())
        return pb_utils.InferenceResponse([pb_utils.get_output_tensor_by_name(answer, "OUTPUT0")])
"""

# Dies before its first response if there is no file of that name, which it makes; otherwise it responds three times.
ONCE = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            path = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0].decode()
            if not os.path.exists(path):
                open(path, "w").close()
                os.kill(os.getpid(), 9)
            sender = request.get_response_sender()
            for number in range(3):
                text = numpy.array([str(number).encode()], dtype=numpy.object_)
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", text)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def server(folder: Path, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = copy_examples(folder / "models", "simple")
    write_victim(repository)
    for name in ("batched", "answered", "callee"):
        write_victim(repository, name, RUNS=str(folder / f"{name} runs"))
    write_victim(repository, "fussy", IDEMPOTENT="false", RUNS=str(folder / "fussy runs"))
    write_victim(repository, "pair", instances=2)
    write_model(repository, "gated", GATED, "STRING", [1, 1])
    write_model(repository, "caller", CALLER, "STRING", [1, 1])
    write_decoupled_model(repository, "tell", TELL, *STRINGS)
    write_decoupled_model(repository, "once", ONCE, *STRINGS)
    with serving([repository], make_run_dir(), "--model-control-mode=explicit", "--load-model=*") as running:
        yield running


def kill_worker(watch: Watch, model: str) -> int:
    """Its only one, or one of several; the pid that it had."""
    pid = watch.worker_pid(model)
    os.kill(pid, signal.SIGKILL)
    return pid


def runs_of(folder: Path, model: str) -> list[str]:
    """What it has run, each with how many at a time."""
    path = folder / f"{model} runs"
    return path.read_text().splitlines() if path.exists() else []


def restarts(server: Server, model: str) -> int:
    """Of its only instance."""
    [count] = [int(row["restarts"]) for row in server.status()["instances"] if row["model"] == model]
    return count


def hello(server: Server, model: str = "victim") -> bool:
    return say(server, "hello", model) == (200, "hello")


@pytest.mark.timeout(60)
def test_idle(server: Server) -> None:
    """The next request is answered by another worker, without an error in between."""
    assert hello(server)
    with watching(server) as watch:
        before = restarts(server, "victim")
        killed = kill_worker(watch, "victim")
        assert hello(server)
        assert watch.worker_pid("victim", other_than=killed)
        assert restarts(server, "victim") == before + 1


@pytest.mark.timeout(60)
def test_under_load(server: Server) -> None:
    """Five times, the very model that the bystanders ask: none of their requests fails, no answer is another's."""
    with watching(server) as watch:
        assert watch.load is not None
        before = restarts(server, "simple")
        pid = 0
        for _ in range(KILLS):
            pid = watch.worker_pid("simple", other_than=pid)
            os.kill(pid, signal.SIGKILL)
            watch.load.wait_for_answers(time.monotonic(), 50, BACK_WITHIN_S)
        assert restarts(server, "simple") == before + KILLS


@pytest.mark.timeout(60)
def test_in_the_middle_of_a_batch(server: Server, folder: Path, tmp_path: Path) -> None:
    """A batch of eight, of eight clients: each is run once more, alone, and answered right, once."""
    first, second = tmp_path / "first", tmp_path / "second"
    with watching(server) as watch:
        before = inferences(server, "batched")
        running = Clients(server, [f"wait {first}"], "batched")
        watch.back_within(BACK_WITHIN_S, lambda: runs_of(folder, "batched") == [f"1 wait {first}"])
        mates = Clients(server, [f"wait {second}", *(f"mate {number}" for number in range(7))], "batched")
        wait_for_queued(watch, "batched", 8)
        first.touch()
        watch.back_within(BACK_WITHIN_S, lambda: f"8 wait {second}" in runs_of(folder, "batched"))
        kill_worker(watch, "batched")
        second.touch()
        assert_right(running.wait())
        assert_right(mates.wait())
        watch.back_within(BACK_WITHIN_S, lambda: inferences(server, "batched") - before == 9)
        assert metric(server, "conch_inference_retries_total", model="batched") == 8
        assert metric(server, "conch_worker_deaths_total", model="batched", cause="SIGKILL") == 1
    runs = [f"1 wait {first}", *(f"{together} {text}" for together in (8, 1) for text in mates.answers)]
    assert sorted(runs_of(folder, "batched")) == sorted(runs)


@pytest.mark.timeout(60)
def test_between_its_answer_and_the_report(server: Server, folder: Path, tmp_path: Path) -> None:
    """Who has an answer has it once, and is not run again; who was in the batch with it is."""
    gate = tmp_path / "gate"
    with watching(server) as watch:
        assert say(server, "answer_then_kill", "answered") == (200, "answer_then_kill")
        running = Clients(server, [f"wait {gate}"], "answered")
        watch.back_within(BACK_WITHIN_S, lambda: f"1 wait {gate}" in runs_of(folder, "answered"))
        batch = Clients(server, ["answer_then_kill again", "one", "another"], "answered")
        wait_for_queued(watch, "answered", 3)
        gate.touch()
        assert_right({**running.wait(), **batch.wait()})
    runs = ["1 answer_then_kill", f"1 wait {gate}", "3 answer_then_kill again", "3 one", "3 another"]
    assert sorted(runs_of(folder, "answered")) == sorted([*runs, "1 one", "1 another"])


@pytest.mark.timeout(60)
def test_with_a_backed_up_frontend(server: Server) -> None:
    """Large answers lie in the dead worker's memory, because their clients do not read: they get them whole."""
    with watching(server) as watch, SlowReader(server, "large 8") as one, SlowReader(server, "large 9") as another:
        one.wait_for_its_beginning()
        another.wait_for_its_beginning()
        killed = kill_worker(watch, "victim")
        assert hello(server)
        assert watch.worker_pid("victim", other_than=killed)
        assert one.rest() == b"0123456789abcdef" * (8 << 16)
        assert another.rest() == b"0123456789abcdef" * (9 << 16)


@pytest.mark.timeout(60)
def test_not_to_be_run_again(server: Server, folder: Path, tmp_path: Path) -> None:
    """IDEMPOTENT: false. What runs fails at the first death; what is queued has not run, and is answered."""
    gate = tmp_path / "gate"
    with watching(server) as watch:
        running = Clients(server, [f"wait {gate}"], "fussy")
        watch.back_within(BACK_WITHIN_S, lambda: bool(runs_of(folder, "fussy")))
        queued = Clients(server, [f"queued {number}" for number in range(4)], "fussy")
        wait_for_queued(watch, "fussy", 4)
        kill_worker(watch, "fussy")
        [(status, text)] = running.wait().values()
        assert status == 500
        assert "the worker of instance 'fussy_0_0' was killed by SIGKILL" in text
        assert_right(queued.wait())
    runs = [line.partition(" ")[2] for line in runs_of(folder, "fussy")]
    assert sorted(runs) == sorted([f"wait {gate}", *queued.answers])


@pytest.mark.timeout(60)
def test_one_of_two_instances(server: Server) -> None:
    """The other one goes on, and then there are two again."""

    def pids() -> set[int]:
        return {pid for pid, name in workers(server).items() if name.startswith("pair_")}

    with watching(server) as watch:
        before = pids()
        assert len(before) == 2
        killed = kill_worker(watch, "pair")
        assert all(hello(server, "pair") for _ in range(20))
        watch.back_within(BACK_WITHIN_S, lambda: len(pids()) == 2)
        assert before & pids() == before - {killed}


@pytest.mark.timeout(60)
def test_asked_by_another_model(server: Server, folder: Path, tmp_path: Path) -> None:
    """A model asks another one, whose worker is killed: it has its answer, of the second run. If that one dies as well,
    it has an error that it can pass on, and lives."""
    gate = tmp_path / "gate"
    assert hello(server, "caller")  # from now on it has what it takes to ask
    with watching(server) as watch:
        caller = watch.worker_pid("caller")
        asking = Clients(server, [f"wait {gate}"], "caller")
        watch.back_within(BACK_WITHIN_S, lambda: f"1 wait {gate}" in runs_of(folder, "callee"))
        kill_worker(watch, "callee")
        gate.touch()
        assert_right(asking.wait())
        assert runs_of(folder, "callee") == ["1 hello", *[f"1 wait {gate}"] * 2]
        status, text = say(server, "kill", "caller")
        assert status == 500
        assert "the worker of instance 'callee_0_0' was killed by SIGKILL" in text
        assert hello(server, "caller")
        assert watch.worker_pid("caller") == caller


@pytest.mark.timeout(60)
def test_after_some_responses_of_a_stream(server: Server) -> None:
    """What was sent arrives, in order, and then a clear error; the stream itself goes on."""
    with watching(server), Stream(server.grpc_url) as stream:
        stream.send(telling("r a,r b,n 100,die"))
        texts = [text_of(stream.answer()) for _ in range(102)]
        assert texts == ["a", "b", *map(str, range(100))]
        error = stream.answer().error_message
        assert "the worker of instance 'tell_0_0' was killed by SIGKILL" in error
        stream.send(telling("r again,f"))
        assert [text_of(each) for each in stream.rest()][:1] == ["again"]


@pytest.mark.timeout(60)
def test_before_the_first_response_of_a_stream(server: Server, tmp_path: Path) -> None:
    """Nobody has seen anything of it: it is run again."""
    with watching(server), Stream(server.grpc_url, telling(str(tmp_path / "once"), model="once")) as stream:
        assert [text_of(stream.answer()) for _ in range(3)] == ["0", "1", "2"]


class Gate:
    """Where the worker of the model "gated" is held, until the end of ``with``."""

    def __init__(self, watch: Watch, folder: Path, name: str) -> None:
        self._watch = watch
        self._path = folder / "models" / "gated"
        self._name = name

    def __enter__(self) -> "Gate":
        (self._path / f"hold {self._name}").touch()
        return self

    def __exit__(self, *_: object) -> None:
        (self._path / f"hold {self._name}").unlink()
        (self._path / self._name).unlink(missing_ok=True)

    def kill(self) -> None:
        """Whoever waits here."""
        self._watch.back_within(BACK_WITHIN_S, (self._path / self._name).exists)
        os.kill(int((self._path / self._name).read_text()), signal.SIGKILL)


class Call(threading.Thread):
    """A call of the repository for the model "gated", on a thread of its own."""

    def __init__(self, server: Server, verb: str) -> None:
        super().__init__()
        self._server = server
        self._verb = verb
        self.answer = (0, b"")
        self.start()

    def run(self) -> None:
        self.answer = self._server.request("POST", f"/v2/repository/models/gated/{self._verb}", timeout_s=30)

    def result(self) -> tuple[int, bytes]:
        self.join(30)
        return self.answer


@pytest.mark.timeout(60)
def test_while_it_loads(server: Server, folder: Path) -> None:
    """The load fails with an error that names the signal, and the next one works."""
    with watching(server) as watch:
        assert Call(server, "unload").result()[0] == 200
        watch.back_within(BACK_WITHIN_S, lambda: "gated_0" not in workers(server).values())
        with Gate(watch, folder, "initialize") as gate:
            load = Call(server, "load")
            gate.kill()
            status, text = load.result()
        assert status == 400
        assert b"was killed by SIGKILL" in text
        assert say(server, "hello", "gated")[0] in (400, 404)
        assert Call(server, "load").result()[0] == 200
        assert hello(server, "gated")


@pytest.mark.timeout(60)
def test_while_it_loads_again(server: Server, folder: Path) -> None:
    """The former version goes on, before and after."""
    with watching(server) as watch:
        with Gate(watch, folder, "initialize") as gate:
            with open(folder / "models" / "gated" / "1" / "model.py", "a") as code:
                code.write("# changed\n")
            load = Call(server, "load")
            assert hello(server, "gated")
            gate.kill()
            status, text = load.result()
            assert status == 400
            assert b"was killed by SIGKILL" in text
            assert all(hello(server, "gated") for _ in range(5))
        assert Call(server, "load").result()[0] == 200
        assert hello(server, "gated")


@pytest.mark.timeout(60)
def test_while_it_is_unloaded(server: Server, folder: Path) -> None:
    """Nobody waits for what it was still doing: the unload comes to its end."""
    with watching(server) as watch:
        with Gate(watch, folder, "finalize") as gate:
            unload = Call(server, "unload")
            gate.kill()
            assert unload.result()[0] == 200
        watch.back_within(BACK_WITHIN_S, lambda: "gated_0" not in workers(server).values())
        [row] = [row for row in server.status()["models"] if row["model"] == "gated"]
        assert (row["state"], row["reason"]) == ("UNAVAILABLE", "unloaded")
        assert Call(server, "load").result()[0] == 200
        assert hello(server, "gated")
