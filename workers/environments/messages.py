"""What the launcher and a process that prepares an environment tell each other, as JSON."""

import msgspec

from workers.environments.choice import Wanted


class Preparation(msgspec.Struct, frozen=True):
    """Asks for an environment that is ready to run workers. ``cache_dir``: where environments that were made lie."""

    model: str
    wanted: Wanted
    cache_dir: str


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """``folder`` is the environment's, ``python`` its interpreter. ``behind``: folders that come last in ``sys.path``,
    with what Conch needs and the environment has not. ``stamp``: as long as ``stamps.now`` says the same, so does
    this."""

    folder: str
    python: str
    behind: tuple[str, ...] = ()
    stamp: str = ""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """``reason`` is for clients: it holds no path of this machine, and goes after "gives no environment"."""

    reason: str
