"""``python -m broker``: the broker process of one server. Its settings come from the environment."""

import logging
import os
import sys

from broker.server import Server
from conch.errors import ConchError
from conch.process import LockHeld, StopSignals, begin, hold_lock
from conch.run_dir import RunDir
from conch.settings import Settings

logger = logging.getLogger("conch.broker")


def main() -> int:
    """Returns the exit status: 0 after a clean stop."""
    settings = Settings.from_environ()
    begin(settings)
    try:
        run_dir = RunDir(settings.run_dir)
        run_dir.create()
        hold_lock(run_dir.broker_lock, f"pid {os.getpid()}")
        stop = StopSignals()
        server = Server(settings, stop)
    except LockHeld as held:
        logger.error("another broker runs in this run directory: %s", held.text)
        return 1
    except ConchError as error:
        logger.error("%s", error.message)
        return 1
    try:
        return server.run()
    finally:
        server.close()
        stop.close()


if __name__ == "__main__":
    sys.exit(main())
