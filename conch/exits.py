"""How processes end, in words."""

import signal


def signal_name(number: int) -> str:
    """``"SIGSEGV"``; ``"signal 40"`` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def how_it_ended(exit_code: int) -> str:
    """``exit_code`` as ``subprocess`` has it: of a process that was killed, the negative number of the signal."""
    return f"killed by {signal_name(-exit_code)}" if exit_code < 0 else f"exited with code {exit_code}"
