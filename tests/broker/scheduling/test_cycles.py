"""Models that ask models, and themselves."""

from typing import Any

import pytest

from broker.instructions import ToData, ToPeer
from broker.scheduling.cycles import LOOK_S, MAX_DEPTH
from broker.scheduling.dispatcher import Dispatcher
from conch.messages import Awaited, Batch, Done, Fault, Rejected, Request, Running
from conch.messages.requests import Parent
from conch.model_config import DynamicBatching, ModelConfig

EPOCH = 5
CLIENT = "client"


class Nest:
    """Models by name with so many workers each; ``a0`` is the first of model ``a``, and also the requester in it."""

    def __init__(self, merging: tuple[str, ...] = (), **models: int) -> None:
        self.now = 10.0
        self.dispatcher = Dispatcher(EPOCH)
        self.dispatcher.startup_finished(self.now)
        self.batches: dict[str, list[Batch]] = {}
        self.rejected: dict[tuple[str, int], str] = {}
        for name, count in models.items():
            batching = DynamicBatching() if name in merging else None
            self.dispatcher.add_model(name, 1, ModelConfig(name=name, max_batch_size=4, dynamic_batching=batching))
            for number in range(count):
                worker = f"{name}{number}"
                self.dispatcher.worker_expected(worker)
                assert self.dispatcher.worker_hello(worker, name, 1, (), self.now)
                self.dispatcher.worker_ready(worker, name, 1)
                self.dispatcher.requester_hello(worker, ())
        self.dispatcher.requester_hello(CLIENT, ())

    def submit(self, id: int, model: str) -> None:
        self.dispatcher.submit(CLIENT, Request(id, 1, model, 1, 1, "", inputs=()), self.now)
        self.dispatch()

    def ask(self, asker: str, id: int, model: str, parent: tuple[str, int], depth: int = 1) -> None:
        request = Request(id, 1, model, 1, 1, "", inputs=(), parent=Parent(*parent), depth=depth)
        self.dispatcher.submit(asker, request, self.now)
        self.dispatch()

    def dispatch(self) -> None:
        for each in self.dispatcher.dispatch(self.now):
            if isinstance(each, ToData):
                self.batches.setdefault(each.worker, []).append(each.message)
            elif isinstance(each, ToPeer) and isinstance(each.message, Rejected):
                assert each.message.fault.kind == "InvalidArgument"
                self.rejected[each.peer, each.message.id] = each.message.fault.message

    def done(self, worker: str, took_s: float = 1.0, **more: Any) -> None:
        batch = self.batches[worker].pop(0)
        done = Done(EPOCH, batch.id, 0, 0, 0, int(took_s * 1e9), **more)
        self.dispatcher.done(worker, done, self.now)
        self.dispatch()

    def look(self, times: int) -> None:
        for _ in range(times):
            wakeup = self.dispatcher.next_wakeup
            assert wakeup is not None
            self.now = wakeup
            self.dispatch()


def test_a_model_that_asks_itself_with_one_instance() -> None:
    nest = Nest(a=1)
    nest.submit(1, "a")
    nest.ask("a0", 1, "a", (CLIENT, 1))
    first_look = nest.dispatcher.next_wakeup
    assert first_look == nest.now + LOOK_S
    nest.look(1)
    assert not nest.rejected
    nest.look(1)
    assert list(nest.rejected) == [("a0", 1)]
    assert nest.rejected["a0", 1] == (
        "model 'a' was asked by a request that 'a' itself is running: its only instance waits for such requests; give "
        "the model more instances, or do not call it from within itself"
    )
    nest.look(1)
    assert nest.dispatcher.next_wakeup is None
    nest.done("a0")
    assert nest.dispatcher.is_idle


def test_enough_instances_need_no_help() -> None:
    nest = Nest(a=2)
    nest.submit(1, "a")
    nest.ask("a0", 1, "a", (CLIENT, 1))
    assert nest.batches["a1"]
    nest.look(1)
    assert nest.dispatcher.next_wakeup is None and not nest.rejected


def test_two_that_ask_themselves_on_two_instances() -> None:
    nest = Nest(a=2)
    nest.submit(1, "a")
    nest.submit(2, "a")
    nest.ask("a0", 1, "a", (CLIENT, 1))
    nest.now += 0.1
    nest.ask("a1", 1, "a", (CLIENT, 2))
    nest.look(2)
    assert list(nest.rejected) == [("a1", 1)]
    assert "all 2 instances wait" in nest.rejected["a1", 1]
    nest.done("a1")
    assert [item.requester for item in nest.batches["a1"][0].items] == ["a0"]


def test_a_ring_of_models_rejects_the_deepest() -> None:
    nest = Nest(a=1, b=1, c=1)
    nest.submit(1, "a")
    nest.ask("a0", 1, "b", (CLIENT, 1), 1)
    nest.ask("b0", 1, "c", ("a0", 1), 2)
    nest.ask("c0", 1, "a", ("b0", 1), 3)
    nest.submit(2, "a")
    nest.look(2)
    assert list(nest.rejected) == [("c0", 1)]
    assert "was asked by a request that 'a' itself is running" in nest.rejected["c0", 1]


def test_two_trees_that_hold_what_the_other_needs() -> None:
    nest = Nest(a=1, b=1, c=1)
    nest.submit(1, "a")
    nest.submit(2, "b")
    nest.submit(3, "c")
    nest.ask("c0", 7, "b", (CLIENT, 3), 5)  # only waits for the others
    nest.ask("a0", 1, "b", (CLIENT, 1))
    nest.now += 0.1
    nest.ask("b0", 1, "a", (CLIENT, 2))
    nest.look(2)
    assert list(nest.rejected) == [("b0", 1)]
    assert nest.rejected["b0", 1].startswith("model 'a' cannot run this request: its only instance waits")
    nest.done("b0")
    nest.look(1)
    assert list(nest.rejected) == [("b0", 1)]


def test_whoever_shares_a_batch_with_the_parent_waits_too() -> None:
    nest = Nest(merging=("b",), a=1, b=1)
    nest.submit(1, "b")
    nest.submit(2, "b")
    nest.submit(3, "a")
    nest.ask("a0", 1, "b", (CLIENT, 3))
    nest.done("b0")  # 2 and what a0 asked are one batch, of which 2 comes first
    assert [item.requester for item in nest.batches["b0"][0].items] == [CLIENT, "a0"]
    nest.ask("b0", 1, "a", (CLIENT, 2), 1)
    nest.look(2)
    assert list(nest.rejected) == [("b0", 1)]


def test_who_does_not_wait_is_left_alone() -> None:
    nest = Nest(a=1)
    nest.submit(1, "a")
    nest.ask("a0", 1, "a", (CLIENT, 1))
    nest.look(1)
    nest.done("a0")
    assert [item.requester for item in nest.batches["a0"][0].items] == ["a0"]
    nest.look(1)
    assert not nest.rejected and nest.dispatcher.next_wakeup is None


def test_an_open_request_does_not_hold_its_worker() -> None:
    nest = Nest(a=1, b=1)
    nest.submit(1, "a")
    nest.ask("a0", 1, "b", (CLIENT, 1))
    nest.done("a0", open=(0,))
    nest.ask("b0", 1, "a", ("a0", 1), 2)
    assert nest.batches["a0"]
    nest.look(1)
    assert nest.dispatcher.next_wakeup is None


@pytest.mark.parametrize("free", ["not draining", "draining"])
def test_workers_that_are_free_or_end_count(free: str) -> None:
    nest = Nest(a=2)
    nest.submit(1, "a")
    nest.submit(2, "a")
    if free == "draining":
        nest.dispatcher.worker_draining("a1")
    nest.ask("a0", 1, "a", (CLIENT, 1))
    nest.look(2)
    assert list(nest.rejected) == ([] if free == "not draining" else [("a0", 1)])


def test_in_the_pipe_of_a_fast_model() -> None:
    """What was put behind a request before that asked for something waits as well as what is queued."""
    nest = Nest(a=1, b=1)
    nest.submit(0, "b")
    nest.done("b0", took_s=0.0001)
    nest.submit(1, "a")
    nest.submit(2, "b")
    nest.ask("a0", 1, "b", (CLIENT, 1))
    assert len(nest.batches["b0"]) == 2
    nest.ask("b0", 1, "a", (CLIENT, 2))
    nest.look(2)
    assert list(nest.rejected) == [("b0", 1)]
    nest.done("b0", took_s=0.0001)
    nest.submit(3, "b")
    assert len(nest.batches["b0"]) == 1, "a model that asks gets one batch at a time"


def test_depth() -> None:
    nest = Nest(a=1)
    nest.ask("a0", 1, "a", ("gone", 1), MAX_DEPTH)
    nest.ask("a0", 2, "a", ("gone", 1), MAX_DEPTH + 1)
    assert list(nest.rejected) == [("a0", 2)]
    assert len(nest.batches["a0"]) == 1


def test_after_a_restart_requesters_say_who_asked() -> None:
    """The client's request runs on ``a``, which asked ``b``, which asks ``a``: the broker has seen only the last."""
    nest = Nest(a=1, b=1)
    for worker in ("a0", "b0"):
        nest.dispatcher.worker_lost(worker, Fault("WorkerDied", ""), nest.now)
        nest.dispatcher.worker_expected(worker)
    assert nest.dispatcher.worker_hello("a0", "a", 1, (Running(CLIENT, 1, 1, 4, 1),), nest.now)
    nest.dispatcher.requester_hello(CLIENT, (Awaited(1, 1, "a", 1),))
    nest.dispatcher.requester_hello("a0", (Awaited(1, 1, "b", 1, Parent(CLIENT, 1)),))
    assert nest.dispatcher.worker_hello("b0", "b", 1, (Running("a0", 1, 1, 4, 2),), nest.now)
    for worker in ("a0", "b0"):
        nest.dispatcher.worker_ready(worker, worker[0], 1)
    nest.ask("b0", 1, "a", ("a0", 1), 2)
    nest.look(2)
    assert list(nest.rejected) == [("b0", 1)]


def test_a_client_that_has_gone_still_holds_what_it_asked_for() -> None:
    nest = Nest(a=1)
    nest.submit(1, "a")
    nest.dispatcher.requester_gone(CLIENT)
    nest.ask("a0", 1, "a", (CLIENT, 1))
    nest.look(2)
    assert list(nest.rejected) == [("a0", 1)]


def test_brothers_go_together() -> None:
    nest = Nest(a=1)
    nest.submit(1, "a")
    for id in (1, 2, 3):
        nest.ask("a0", id, "a", (CLIENT, 1))
    nest.look(1)
    nest.ask("a0", 4, "a", (CLIENT, 1))
    nest.look(1)
    assert list(nest.rejected) == [("a0", 1), ("a0", 2), ("a0", 3)]
    nest.look(1)
    assert list(nest.rejected)[3:] == [("a0", 4)]
