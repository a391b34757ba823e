"""``--metrics-config``: which families there are."""

from collections.abc import Iterable
from typing import NamedTuple

from conch.errors import InvalidArgument
from conch.settings import parse_value

#: Triton's, of families that do not exist here
_WITHOUT_EFFECT = frozenset({"histogram_latencies", "summary_latencies", "summary_quantiles"})


class MetricsOptions(NamedTuple):
    """``without_effect``: settings that were given and change nothing."""

    counter_latencies: bool
    without_effect: tuple[str, ...]

    @classmethod
    def parse(cls, settings: Iterable[str]) -> "MetricsOptions":
        """Of ``NAME=VALUE``. Raises ``InvalidArgument``."""
        counter_latencies = True
        without_effect = []
        for setting in settings:
            name, _, value = setting.partition("=")
            if name == "counter_latencies":
                counter_latencies = bool(parse_value(f"--metrics-config {name}", value, bool))
            elif name in _WITHOUT_EFFECT:
                without_effect.append(name)
            else:
                raise InvalidArgument(f"--metrics-config '{name}' is no setting; there is counter_latencies")
        return cls(counter_latencies, tuple(without_effect))
