"""What is accepted while the server exits."""

from typing import Any

from broker.instructions import ToPeer
from broker.scheduling.exiting import EXITING
from conch.messages import Fault, Rejected, Request
from conch.messages.requests import Parent
from tests.broker.scheduling.test_dispatcher import Bench, batches, only_batch
from tests.broker.scheduling.test_open_requests import close

REFUSED = [ToPeer("model", Rejected(1, 1, EXITING))]


class Exit(Bench):
    """``r`` is a frontend, ``model`` lives in a worker."""

    def __init__(self, workers: int = 2) -> None:
        super().__init__(workers)
        self.dispatcher.requester_hello("model", (), inside=True)

    def idle(self) -> bool:
        return self.dispatcher.is_idle

    def ask(self, id: int, parent: Parent | None = None, attempt: int = 1) -> list[Any]:
        request = Request(id, attempt, "m", 1, 1, "", inputs=(), parent=parent, depth=int(parent is not None))
        self.dispatcher.submit("model", request, self.now)
        return self.dispatch()


def test_models_are_answered_as_long_as_somebody_outside_waits() -> None:
    bench = Exit()
    asked = only_batch(bench.submit(1))
    bench.dispatcher.exit()
    assert bench.submit(2) == [ToPeer("r", Rejected(2, 1, EXITING))]
    assert not bench.idle()
    answering = bench.ask(1)
    assert batches(answering) == [("w1", [1])]
    bench.done("w1", answering[0].message)
    assert bench.done("w0", asked) == []
    assert bench.idle()
    assert bench.ask(1) == REFUSED


def test_what_is_queued_outside_counts() -> None:
    bench = Exit(workers=0)
    bench.submit(1)
    bench.dispatcher.exit()
    assert bench.ask(1) == [] and not bench.idle()
    bench.dispatcher.cancel("r", 1, bench.now)
    bench.dispatcher.cancel("model", 1, bench.now)
    bench.dispatch()
    assert bench.idle()
    assert bench.ask(1) == REFUSED


def test_work_of_models_finishes_but_brings_nothing_new() -> None:
    """A model asks by itself; what it asks may ask further."""
    bench = Exit()
    own = only_batch(bench.ask(7))
    bench.dispatcher.exit()
    assert bench.ask(1) == REFUSED
    assert not bench.idle()
    nested = bench.ask(2, Parent("model", 7))
    assert batches(nested) == [("w1", [2])]
    bench.done("w1", nested[0].message)
    bench.done("w0", own)
    assert bench.idle()
    assert bench.ask(1, Parent("model", 7)) == REFUSED


def test_an_open_request_is_waited_for() -> None:
    bench = Exit()
    bench.done("w0", only_batch(bench.submit(1)), 1.0, open=(0,))
    bench.dispatcher.exit()
    answering = bench.ask(1)
    bench.done("w1", answering[0].message)
    assert not bench.idle()
    close(bench, 1)
    assert bench.idle()


def test_what_died_runs_again() -> None:
    bench = Exit()
    bench.submit(1)
    bench.dispatcher.exit()
    bench.dispatcher.worker_lost("w0", Fault("WorkerDied", "dead"), bench.now)
    bench.dispatch()
    assert batches(bench.submit(1, attempt=2)) == [("w1", [1])]


def test_a_dead_client_is_not_waited_for_longer_than_its_worker() -> None:
    bench = Exit()
    asked = only_batch(bench.submit(1))
    bench.dispatcher.requester_gone("r")
    bench.dispatcher.exit()
    bench.dispatch()
    assert bench.ask(1) == REFUSED
    assert batches(bench.ask(2, Parent("r", 1))) == [("w1", [2])]
    bench.dispatcher.cancel("model", 2, bench.now)
    bench.dispatcher.requester_gone("model")
    assert not bench.idle()
    bench.done("w0", asked)
    bench.dispatcher.worker_lost("w1", Fault("WorkerDied", "dead"), bench.now)
    assert bench.idle()
