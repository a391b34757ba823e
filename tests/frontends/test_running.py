"""The steps in which a frontend ends."""

import asyncio
import time
from signal import SIGINT, SIGTERM, SIGUSR1
from typing import Literal

import pytest

from frontends.running import Life
from tests.frontends.fakes import on_uvloop
from tests.frontends.samples import table


def steps(life: Life) -> str:
    """Which of them have been taken."""
    return "".join(
        letter for letter, step in (("L", life.leaving), ("D", life.draining), ("H", life.hurried)) if step.is_set()
    )


@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        ([SIGTERM], "L"),
        ([SIGTERM, SIGTERM], "LD"),
        ([SIGTERM, SIGINT], "LD"),
        ([SIGTERM, SIGTERM, SIGTERM], "LDH"),
        ([SIGTERM, SIGTERM, SIGINT], "LD"),  # it may come just after the delay is over, and must not cut anything off
        ([SIGINT], "LD"),
        ([SIGUSR1], "LD"),
        ([SIGTERM, SIGUSR1, SIGUSR1], "LD"),
        ([SIGINT, SIGINT], "LD"),
        ([SIGINT, SIGTERM], "LDH"),
    ],
)
def test_signals(signals: list[int], expected: str) -> None:
    life = Life()
    for number in signals:
        life.signalled(number)
    assert steps(life) == expected


@pytest.mark.parametrize("first", ["signal", "broker"])
def test_without_a_broker_there_is_nothing_to_serve(first: Literal["signal", "broker"]) -> None:
    life = Life()
    life.look_at(table(server="starting"))
    assert not life.loaded.is_set()
    life.look_at(table())
    assert life.loaded.is_set()
    if first == "signal":
        life.signalled(SIGTERM)
    life.look_at(table(server="exiting"))
    if first == "broker":
        assert steps(life) == "", "it may be started again"
        life.signalled(SIGTERM)
    assert steps(life) == "LD"


@on_uvloop
async def test_clients_are_asked_to_part_half_way() -> None:
    life = Life()
    life.signalled(SIGTERM)
    begin = time.monotonic()
    parted: list[tuple[str, float]] = []
    await life.serve_on(0.4, lambda: parted.append((steps(life), time.monotonic() - begin)))
    [(taken, elapsed_s)] = parted
    assert taken == "L" and elapsed_s > 0.19
    assert steps(life) == "LD" and time.monotonic() - begin > 0.39


@on_uvloop
async def test_a_delay_that_is_cut_short() -> None:
    life, parted = Life(), asyncio.Event()
    life.signalled(SIGTERM)
    serving = asyncio.ensure_future(life.serve_on(60, parted.set))
    await asyncio.sleep(0)
    life.signalled(SIGTERM)
    await asyncio.wait_for(serving, 10)
    assert steps(life) == "LD" and not parted.is_set()


@on_uvloop
async def test_no_delay() -> None:
    life = Life()
    life.signalled(SIGTERM)
    await life.serve_on(0, lambda: pytest.fail("nobody had time to notice"))
    assert steps(life) == "LD"
