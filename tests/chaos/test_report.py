"""What counts as a failure, and what is excused because a frontend was killed."""

from typing import Any

import pytest

from tests.chaos.clients import Exchange
from tests.chaos.killing import Kill
from tests.chaos.report import judge, recovery_s

HTTP_KILLED = Kill("http", 1, 10.0)


def exchange(sent_s: float, ended_s: float, verdict: Any = "right") -> Exchange:
    return Exchange(0, "http", ("simple",), sent_s, ended_s, verdict)


@pytest.mark.parametrize("verdict", ["wrong", "error"])
def test_what_is_never_excused(verdict: str) -> None:
    judged = judge([[exchange(9, 9.5), exchange(9.9, 10.1, verdict)]], [HTTP_KILLED])
    assert (judged.right, len(judged.failures), judged.excused) == (1, 1, [])


@pytest.mark.parametrize(
    ("role", "killed_s", "excused"),
    [("http", 10.0, True), ("http", 8.0, False), ("http", 11.0, False), ("grpc", 10.0, False), ("broker", 10.0, False)],
)
def test_a_connection_that_breaks(role: str, killed_s: float, excused: bool) -> None:
    """Only with the frontend that it was open on, since it was used last."""
    judged = judge([[exchange(9, 9.5), exchange(9.9, 10.1, "broken")]], [Kill(role, 1, killed_s)])
    assert (len(judged.excused), len(judged.failures)) == (int(excused), int(not excused))


def test_the_next_connection_is_not_excused() -> None:
    broken = [exchange(9.9, 10.3, "broken"), exchange(10.5, 10.6, "broken")]
    judged = judge([[exchange(9, 9.5), *broken]], [HTTP_KILLED])
    assert (judged.excused, judged.failures) == ([broken[0]], [broken[1]])


def test_recovery() -> None:
    answered = [exchange(1, 9), exchange(9.9, 10.2), exchange(10.1, 10.4), exchange(10.2, 10.5)]
    assert recovery_s(HTTP_KILLED, answered) == pytest.approx(0.4)
    assert recovery_s(Kill("worker simple_0", 1, 10.0), answered) == pytest.approx(0.4)
    assert recovery_s(Kill("worker other_0", 1, 10.0), answered) is None
    assert recovery_s(Kill("grpc", 1, 10.0), answered) is None
