"""Whoever does not read has few tables waiting, and gets the newest; nobody is told "done" before all have seen it."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.announcements import PATIENCE_S
from broker.tables import Tables
from conch.messages import Answer, ModelTable, RegionTable

ONE, TWO, OBSERVER, CALLER = b"one", b"two", b"observer", b"caller"


class Bench:
    """``sent``: what each was sent and has not read. What changed how often can be read from the tables."""

    def __init__(self) -> None:
        self.changes = {"models": 0, "regions": 0}
        self.sent: dict[bytes, list[Any]] = {peer: [] for peer in (ONE, TWO, OBSERVER, CALLER)}
        self.tables = Tables(lambda peer, message: self.sent[peer].append(message), self._models, self._regions)

    def _models(self, revision: int) -> ModelTable:
        return ModelTable(self.changes["models"], revision, "ready", ())

    def _regions(self, revision: int) -> RegionTable:
        return RegionTable(self.changes["regions"], revision, ())

    def change(self, kind: str) -> None:
        self.changes[kind] += 1
        if kind == "models":
            self.tables.models_changed()
        else:
            self.tables.regions_changed()

    def take(self, peer: bytes) -> list[Any]:
        messages = self.sent[peer]
        self.sent[peer] = []
        return messages

    def read(self, peer: bytes) -> list[Any]:
        """Everything, until there is nothing more, and says so."""
        found = []
        while messages := self.take(peer):
            found += messages
            for message in messages:
                self.tables.seen(peer, message.revision)
        return found


def kinds(messages: list[Any]) -> list[tuple[type, int]]:
    """The second of each: how many changes it has."""
    return [(type(message), message.epoch) for message in messages]


def test_the_newest_once_the_last_has_been_seen() -> None:
    bench = Bench()
    bench.tables.add_requester(ONE)
    for kind in ("regions", "models", "models", "regions"):
        bench.change(kind)
    first = bench.take(ONE)
    assert kinds(first) == [(RegionTable, 0), (ModelTable, 0)]
    bench.tables.seen(ONE, first[0].revision)
    assert not bench.sent[ONE]
    bench.tables.seen(ONE, first[1].revision)
    assert kinds(bench.sent[ONE]) == [(RegionTable, 2), (ModelTable, 2)]
    assert len(bench.read(ONE)) == 2
    bench.change("regions")
    assert kinds(bench.read(ONE)) == [(RegionTable, 3)]


def test_an_answer_waits_for_a_table_that_is_still_owed() -> None:
    bench = Bench()
    bench.tables.add_requester(ONE)
    bench.change("regions")
    bench.tables.answer(CALLER, Answer(1), 0.0)
    bench.change("models")
    bench.tables.answer(CALLER, Answer(2), 0.0)
    for message in bench.take(ONE):
        bench.tables.seen(ONE, message.revision)
    regions, models = bench.take(ONE)
    bench.tables.seen(ONE, regions.revision)
    assert not bench.sent[CALLER]
    bench.tables.seen(ONE, models.revision)
    assert bench.sent[CALLER] == [Answer(1), Answer(2)]


def test_not_for_ever() -> None:
    bench = Bench()
    bench.tables.add_requester(ONE)
    bench.tables.answer(CALLER, Answer(1), 3.0)
    assert bench.tables.next_wakeup == 3.0 + PATIENCE_S
    bench.tables.tick(3.0 + PATIENCE_S)
    assert bench.take(CALLER) == [Answer(1)]


def test_the_dead_and_those_who_say_hello_again() -> None:
    bench = Bench()
    bench.tables.add_requester(ONE)
    bench.change("regions")
    bench.take(ONE)  # lost with its connection
    bench.tables.add_requester(ONE)
    assert kinds(bench.read(ONE)) == [(RegionTable, 1), (ModelTable, 0)]
    bench.tables.add_requester(TWO)
    bench.tables.answer(CALLER, Answer(1), 0.0)
    bench.tables.gone(TWO)
    assert bench.take(CALLER) == [Answer(1)]
    bench.take(TWO)
    bench.change("regions")
    bench.tables.seen(TWO, 2)
    assert not bench.sent[TWO]


def test_observers_get_each_table_of_models() -> None:
    bench = Bench()
    bench.tables.add_observer(OBSERVER)
    for kind in ("models", "regions", "models"):
        bench.change(kind)
    assert kinds(bench.take(OBSERVER)) == [(ModelTable, 0), (ModelTable, 1), (ModelTable, 2)]
    bench.tables.gone(OBSERVER)
    bench.change("models")
    assert not bench.sent[OBSERVER]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["models", "regions", "read one", "answer", "hello"]), st.sampled_from([ONE, TWO])),
    max_size=60,
)


@given(EVENTS)
def test_in_any_order(events: list[tuple[str, bytes]]) -> None:
    bench = Bench()
    has: dict[bytes, dict[type, int]] = {ONE: {}, TWO: {}}
    needed: dict[int, dict[type, int]] = {}
    number = 0
    for peer in has:
        bench.tables.add_requester(peer)
    for event, peer in events:
        if event in bench.changes:
            bench.change(event)
        elif event == "hello":
            bench.take(peer)
            bench.tables.add_requester(peer)
        elif event == "answer":
            number += 1
            needed[number] = {ModelTable: bench.changes["models"], RegionTable: bench.changes["regions"]}
            bench.tables.answer(CALLER, Answer(number), 0.0)
        elif bench.sent[peer]:
            table = bench.sent[peer].pop(0)
            has[peer][type(table)] = table.epoch
            bench.tables.seen(peer, table.revision)
        assert all(len(bench.sent[peer]) <= 2 for peer in has)
        for answer in bench.take(CALLER):
            least = needed.pop(answer.call)
            assert all(tables[kind] >= count for tables in has.values() for kind, count in least.items())
    for peer in has:
        bench.read(peer)
    assert len(bench.take(CALLER)) == len(needed)
    assert bench.tables.next_wakeup is None
