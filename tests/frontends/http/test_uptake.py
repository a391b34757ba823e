"""Clients that do not read their answers, one by one and all together."""

import pytest

from frontends.http.engine import Limits
from frontends.http.uptake import Uptake
from tests.frontends.http.support import Frontend
from tests.frontends.http.test_slow_reader import SlowReader, check, request
from tests.frontends.http.wire import wait_until

LIMITS = Limits(write_seconds=30.0, write_nbytes=1000)


def test_who_lags_behind() -> None:
    """``write_seconds`` are enough for what is left, or they are not."""
    uptake = Uptake()

    def lag(now: float) -> tuple[float | None, float]:
        return uptake.lagging_since, uptake.burden(now)

    assert uptake.look(1.0, 3_000_000, 3_000_000, LIMITS)
    assert lag(1.0) == (None, 0.0), "the answer has just come"
    assert uptake.look(2.0, 3_000_000, 2_900_000, LIMITS)
    assert lag(2.0) == (None, 0.0)
    assert uptake.look(3.0, 3_000_000, 2_880_000, LIMITS)
    assert lag(3.0) == (3.0, 2_880_000)
    assert uptake.look(4.0, 3_000_000, 2_870_000, LIMITS)
    assert lag(5.0) == (3.0, 3 * 2_870_000)
    assert uptake.look(5.0, 3_000_000, 2_700_000, LIMITS)
    assert lag(5.0) == (None, 0.0)
    assert uptake.look(6.0, 3_000_000, 0, LIMITS)
    assert uptake.unsent_nbytes == 0


def test_who_has_stopped() -> None:
    uptake = Uptake()
    assert uptake.look(0.0, 5000, 5000, LIMITS)
    assert uptake.look(20.0, 5000, 4001, LIMITS)
    assert not uptake.look(30.1, 5000, 4001, LIMITS)


def test_a_reader_of_many_answers_has_not_stopped() -> None:
    """Although there may be always as much that it has not read yet."""
    uptake = Uptake()
    for second in range(100):
        assert uptake.look(float(second), 5000 + second * 500, 5000, LIMITS)


def unsent(frontend: Frontend) -> int:
    return sum(connection.uptake.unsent_nbytes for connection in frontend.engine.connections)


@pytest.mark.timeout(60)
def test_slow_readers_together() -> None:
    """Those that read nothing are cut off until the others' answers fit the limit; who reads gets all of it."""
    nbytes = 8 << 20
    with Frontend(Limits(unsent_nbytes=12 << 20, write_seconds=20.0)) as frontend:
        stuck = [SlowReader(frontend.port, seed) for seed in range(5)]
        reading = SlowReader(frontend.port, 5)
        for seed, reader in enumerate(stuck):
            reader.connection.sendall(request(seed, nbytes)[0])
        sent, blob = request(5, nbytes)
        reading.connection.sendall(sent)
        check(reading, 5, blob)
        # the kernel holds a part of each answer, too
        wait_until(lambda: 2 <= len(frontend.engine.connections) < 6)
        wait_until(lambda: frontend.do(lambda: unsent(frontend)) <= 12 << 20)
        sent, blob = request(6, nbytes)
        reading.connection.sendall(sent)
        check(reading, 6, blob)
        assert len(frontend.engine.connections) >= 2, "nobody is cut off below the limit"
        for reader in (*stuck, reading):
            reader.connection.close()
        wait_until(lambda: not frontend.engine.connections)
        assert frontend.requester.borrowed == frontend.requester.released == 7
