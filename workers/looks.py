"""When to look again at what grows."""


def next_look_s(size: float, before: float, elapsed_s: float, limit: float, soonest_s: float, latest_s: float) -> float:
    """Seconds until ``size``, which was ``before`` that long ago, reaches ``limit`` if it goes on like that; between
    ``soonest_s`` and ``latest_s``."""
    growth = size - before
    if growth <= 0 or elapsed_s <= 0:
        return latest_s
    return min(latest_s, max(soonest_s, (limit - size) * elapsed_s / growth))
