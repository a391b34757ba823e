"""Responses that wait for a model to read them."""

import asyncio

import pytest

from conch.errors import ModelError, Overloaded
from conch.requester.inference import InferenceResult
from workers.python_utils.mailbox import MOST_WAITING, Mailbox


def result(released: list[int], number: int) -> InferenceResult:
    return InferenceResult("m", 1, "", {}, [], lambda: released.append(number))


def test_errors_that_nobody_reads_come_to_an_end() -> None:
    mailbox = Mailbox()
    for _ in range(3 * MOST_WAITING):
        mailbox.put(ModelError("again"), False)
    for _ in range(MOST_WAITING):
        assert not mailbox.wait().final
    last = mailbox.wait()
    assert last.final and isinstance(last.outcome, Overloaded) and mailbox.flooded


def test_the_last_response_is_never_too_many() -> None:
    mailbox = Mailbox()
    for _ in range(MOST_WAITING):
        mailbox.put(ModelError("again"), False)
    mailbox.put(None, True)
    assert [mailbox.wait().final for _ in range(MOST_WAITING + 1)] == [False] * MOST_WAITING + [True]
    assert not mailbox.flooded


def test_nothing_comes_after_the_last_one() -> None:
    released: list[int] = []
    mailbox = Mailbox()
    mailbox.put(result(released, 0), True)
    mailbox.put(result(released, 1), False)
    assert released == [1]
    mailbox.close()
    assert released == [1, 0]


def test_who_stops_waiting_leaves_nothing_behind() -> None:
    mailbox = Mailbox()

    async def main() -> None:
        for _ in range(10):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(mailbox.wait_in_loop(), 0.001)
        assert mailbox._wakers == []
        mailbox.put(None, True)
        assert (await mailbox.wait_in_loop()).final

    asyncio.run(main())
