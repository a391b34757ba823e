"""Answers, deaths, cancels and restarts in any order: see ``world``."""

import os
import random

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.broker.scheduling.world import World

#: more of them by hand: ``CONCH_SIMULATIONS=20000 pytest tests/broker/scheduling``
SIMULATIONS = int(os.environ.get("CONCH_SIMULATIONS", "150"))


def run(source: bytes) -> World:
    world = World(source)
    try:
        world.run()
        world.settle()
    except BaseException:
        note("\n".join(world.log))
        raise
    return world


@pytest.mark.timeout(0 if "CONCH_SIMULATIONS" in os.environ else 60)
@settings(max_examples=SIMULATIONS, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=20, max_size=1200))
def test_short_lives_that_hypothesis_draws(source: bytes) -> None:
    run(source)


@pytest.mark.timeout(0 if "CONCH_SIMULATIONS" in os.environ else 60)
def test_long_lives_by_seed() -> None:
    for seed in range(SIMULATIONS // 5):
        try:
            run(random.Random(seed).randbytes(6000))
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
