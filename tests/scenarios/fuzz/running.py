"""How much is fuzzed.

By default a few hundred examples, always the same ones, within a time bound. ``CONCH_FUZZ_EXAMPLES=N`` asks for N
others in every test, without a bound: ``scripts/fuzz`` does that in a loop.
"""

import os
import time
from collections.abc import Callable

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity

#: per test and server, where nothing else is asked for
EXAMPLES = 300
WITHIN_S = 6.0

_asked = int(os.environ.get("CONCH_FUZZ_EXAMPLES", "0"))
IS_LONG = _asked > 0


def fuzzed(examples: int = EXAMPLES) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Settings for a test made with ``hypothesis.given``. A finding is made smaller only in a long run: each attempt
    asks the server again."""
    phases = [Phase.generate, Phase.shrink] if IS_LONG else [Phase.generate]
    return hypothesis.settings(
        max_examples=_asked or examples,
        derandomize=not IS_LONG,
        database=None,
        deadline=None,
        print_blob=IS_LONG,
        phases=phases,
        report_multiple_bugs=False,
        verbosity=Verbosity.normal,
        suppress_health_check=list(HealthCheck),
    )


class Bound:
    """The time that one test may take. ``over`` says so from then on: the rest of the examples is passed over."""

    def __init__(self) -> None:
        self._until = time.monotonic() + WITHIN_S

    @property
    def over(self) -> bool:
        return not IS_LONG and time.monotonic() > self._until
