"""Answers wait for those who have not seen the tables: bounded, complete, each sent once."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.announcements import PATIENCE_S, Announcements
from conch.messages import Answer

ONE, TWO, CALLER = b"one", b"two", b"caller"


def answer(number: int = 1) -> Answer:
    return Answer(number)


class TestAnswers:
    def test_nobody_to_wait_for(self) -> None:
        waits = Announcements()
        assert waits.answer(CALLER, answer(), 0.0) == [(CALLER, answer())]
        waits.told(ONE, 3)
        assert waits.seen(ONE, 3) == []
        assert waits.answer(CALLER, answer(), 0.0) == [(CALLER, answer())]
        assert waits.next_wakeup is None

    def test_it_waits_for_the_last(self) -> None:
        waits = Announcements()
        waits.told(ONE, 3)
        waits.told(TWO, 3)
        assert waits.answer(CALLER, answer(), 0.0) == []
        assert waits.seen(ONE, 2) == []
        assert waits.seen(ONE, 3) == []
        assert waits.seen(TWO, 4) == [(CALLER, answer())]
        assert waits.seen(TWO, 5) == []

    def test_a_later_change_is_not_waited_for(self) -> None:
        waits = Announcements()
        waits.told(ONE, 3)
        waits.answer(CALLER, answer(), 0.0)
        waits.told(ONE, 4)
        waits.answer(CALLER, answer(2), 0.0)
        assert waits.seen(ONE, 3) == [(CALLER, answer())]
        assert waits.seen(ONE, 4) == [(CALLER, answer(2))]

    def test_not_for_ever(self) -> None:
        waits = Announcements()
        waits.told(ONE, 3)
        waits.answer(CALLER, answer(), 5.0)
        assert waits.next_wakeup == 5.0 + PATIENCE_S
        assert waits.tick(5.0 + PATIENCE_S / 2) == []
        assert waits.tick(5.0 + PATIENCE_S) == [(CALLER, answer())]
        assert not waits.next_wakeup
        assert waits.seen(ONE, 3) == []

    def test_the_dead_are_not_waited_for_and_get_nothing(self) -> None:
        waits = Announcements()
        waits.told(ONE, 3)
        waits.told(TWO, 3)
        waits.answer(CALLER, answer(), 0.0)
        waits.answer(ONE, answer(2), 0.0)
        assert waits.gone(ONE) == []
        assert waits.gone(TWO) == [(CALLER, answer())]
        assert waits.answer(CALLER, answer(3), 0.0) == [(CALLER, answer(3))]

    def test_an_exit_keeps_nobody_waiting(self) -> None:
        waits = Announcements()
        waits.told(ONE, 3)
        waits.answer(CALLER, answer(), 0.0)
        assert waits.stop_waiting() == [(CALLER, answer())]
        waits.told(ONE, 4)  # models are unloaded
        assert waits.answer(CALLER, answer(2), 0.0) == [(CALLER, answer(2))]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["told", "seen", "answer", "gone", "tick"]), st.sampled_from([ONE, TWO])), max_size=40
)


@given(EVENTS)
def test_every_answer_is_sent_once_and_never_early(events: list[tuple[str, bytes]]) -> None:
    waits = Announcements()
    told: dict[bytes, int] = {}
    seen: dict[bytes, int] = {}
    asked: dict[int, tuple[dict[bytes, int], float]] = {}
    sent: list[int] = []
    revision, now = 0, 0.0

    def take(released: Any) -> None:
        for caller, released_answer in released:
            assert caller == CALLER
            sent.append(released_answer.call)
            missing, until = asked[released_answer.call]
            assert now >= until or all(seen.get(p, 0) >= needed or p not in told for p, needed in missing.items())

    for kind, peer in events:
        now += 0.2
        if kind == "told":
            revision += 1
            told[peer] = revision
            waits.told(peer, revision)
        elif kind == "seen":
            seen[peer] = told.get(peer, 0)
            take(waits.seen(peer, seen[peer]))
        elif kind == "answer":
            number = len(asked) + 1
            asked[number] = (dict(told), now + PATIENCE_S)
            take(waits.answer(CALLER, answer(number), now))
        elif kind == "gone":
            told.pop(peer, None)
            seen.pop(peer, None)
            for missing, _ in asked.values():  # nobody waits for it again if it comes back
                missing.pop(peer, None)
            take(waits.gone(peer))
        else:
            take(waits.tick(now))
    now += 2 * PATIENCE_S
    take(waits.tick(now))
    assert sorted(sent) == sorted(asked)
