"""``breakpoint()`` in a model, with and without somebody who may attach."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conch.messages import Ready
from tests.workers import decoupled
from tests.workers.harness import Stage, ints
from tests.workers.test_python_model import model

STOPS = model("y = x + 1\nbreakpoint()\nresponse = InferenceResponse([Tensor('OUT', y)])")


@pytest.fixture
def debugged(make_run_dir: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("CONCH_DEBUG", "stops")
    stage = Stage(make_run_dir())
    stage.enter()
    yield stage
    stage.leave()
    stage.close()


class Terminal:
    """What ``conch debug`` is to a worker."""

    def __init__(self, stage: Stage) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(stage.run_dir.debug_socket("stops")))
        self.seen = ""

    def prompt(self) -> str:
        """What has come until the next prompt."""
        while not self.seen.endswith("(Pdb) "):
            chunk = self._socket.recv(4096)
            assert chunk, self.seen
            self.seen += chunk.decode()
        seen, self.seen = self.seen, ""
        return seen

    def say(self, text: str) -> None:
        self._socket.sendall(text.encode() + b"\n")

    def close(self) -> None:
        self._socket.close()


def ask(stage: Stage, worker: str) -> Callable[[], int]:
    """Sends a request; returns how to get its answer."""
    request = stage.requester.request("stops", stage.requester.put("IN", ints(1)))
    batch = stage.send(worker, request)

    def answer() -> int:
        response = stage.requester.response(worker)
        assert response.error is None, response.error
        value = int(stage.requester.outputs(response)["OUT"][0, 0])
        stage.done(batch)
        return value

    return answer


def until_it_waits(stage: Stage, times: int = 1) -> None:
    deadline = time.monotonic() + 10
    while stage.model_log("stops").count("waiting for 'conch debug stops'") < times:
        assert time.monotonic() < deadline, stage.model_log("stops")
        stage.broker.listen(0.02)


def test_a_breakpoint_waits_for_somebody_and_shows_the_model(debugged: Stage) -> None:
    worker = debugged.ready(debugged.model("stops", STOPS))
    answer = ask(debugged, worker)
    until_it_waits(debugged)
    terminal = Terminal(debugged)
    terminal.prompt()
    terminal.say("p y")
    assert "array([[2]], dtype=int32)" in terminal.prompt()
    terminal.say("y += 40")
    terminal.prompt()
    terminal.say("c")
    assert answer() == 42
    answer = ask(debugged, worker)  # while attached, it stops where execute begins
    terminal.prompt()
    terminal.say("p len(requests)")
    assert "1\n" in terminal.prompt()
    terminal.say("c")
    terminal.prompt()  # and at its breakpoint
    terminal.say("q")
    assert answer() == 2
    terminal.close()


def test_a_terminal_that_goes_away_lets_the_model_go_on(debugged: Stage) -> None:
    worker = debugged.ready(debugged.model("stops", STOPS))
    for times in (1, 2):
        answer = ask(debugged, worker)
        until_it_waits(debugged, times)
        terminal = Terminal(debugged)
        terminal.prompt()
        terminal.close()
        assert answer() == 2


def test_it_stops_at_the_first_line_of_a_coroutine(debugged: Stage) -> None:
    code = model("y = x + 1\nresponse = InferenceResponse([Tensor('OUT', y)])").replace(
        "def execute", "async def execute"
    )
    worker = debugged.ready(debugged.model("stops", code))
    gone = Terminal(debugged)
    gone.close()  # harms nobody who comes later
    for _ in range(2):
        terminal = Terminal(debugged)
        answer = ask(debugged, worker)
        assert "execute()" in terminal.prompt()
        terminal.say("p len(requests)")
        assert "1\n" in terminal.prompt()
        terminal.say("c")
        assert answer() == 2
        answer = ask(debugged, worker)
        terminal.prompt()
        terminal.say("q")
        assert answer() == 2
        terminal.close()


def test_batches_of_a_coroutine_that_run_at_a_time(debugged: Stage) -> None:
    code = (
        decoupled.HEAD
        + """
    waiting = []

    async def execute(self, requests):
        self.waiting.append(asyncio.Event())
        if len(self.waiting) == 1:
            await self.waiting[0].wait()
        self.waiting[0].set()
        requests[0].get_response_sender().send(answer(len(self.waiting)), FINAL)
"""
    )
    worker = decoupled.ready(debugged, code, name="stops")
    terminal = Terminal(debugged)
    asked = [decoupled.request(debugged, 1, model="stops") for _ in range(2)]
    for each in asked:
        debugged.done(debugged.send(worker, each))
        assert "execute()" in terminal.prompt()
        terminal.say("c")
    found = decoupled.responses(debugged, worker, *asked)
    assert [decoupled.numbers(debugged, each) for each in found.values()] == [[[2]], [[2]]]
    decoupled.closed(debugged, *asked)
    terminal.close()


def test_the_next_process_takes_over(debugged: Stage) -> None:
    config = debugged.model("stops", STOPS)
    debugged.ready(config)
    second = debugged.ready(config)
    answer = ask(debugged, second)
    until_it_waits(debugged)
    terminal = Terminal(debugged)
    terminal.prompt()
    terminal.say("q")
    assert answer() == 2
    terminal.close()


def test_other_models_do_not_stop(debugged: Stage) -> None:
    worker = debugged.ready(debugged.model("other", STOPS))
    assert debugged.ask(worker, "other", ints(1)) == 2


def test_without_a_debugger_a_breakpoint_is_told_once_and_passed(stage: Stage) -> None:
    worker = stage.spawn(stage.model("passes", STOPS))
    stage.broker.expect(Ready)
    for _ in range(3):
        assert stage.ask(worker, "passes", ints(1)) == 2
    found = re.findall(
        r'"breakpoint\(\) at model.py:\d+ does nothing: start the server with (.*)"', stage.model_log("passes")
    )
    assert found == ["--debug=passes, then run 'conch debug passes'"]


def test_a_debugger_that_is_not_installed(make_run_dir: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCH_DEBUG", "stops:5678")
    stage = Stage(make_run_dir())
    stage.enter()
    config = stage.model("stops", STOPS, debugpy="raise ImportError('none here')")
    monkeypatch.undo()
    reason = stage.load_failure(config)
    assert "--debug with a port needs debugpy" in reason
    stage.leave()
    stage.close()
