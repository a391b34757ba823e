"""What a worker does before the model's code runs, so that its end is soon, can be understood, and comes before that of
other processes."""

import contextlib
import faulthandler
import resource
import signal

#: writes the stacks of all threads to the model's log, from C and without the interpreter's lock. Models and their
#: libraries that take SIGABRT for themselves do not know of this one; a process that does not either, ends
SHOW_STACKS = signal.SIGRTMAX - 2
#: what a worker gets that is to show what it was doing, seconds after SIGABRT, which Python's fault handler shows the
#: stacks at and ends by. A stopped process does nothing before SIGKILL
AFTER_ABORT = ((0.25, SHOW_STACKS), (0.5, signal.SIGKILL))
#: of 1000; the broker, the launcher and the frontends have what they were started with
_MORE_OOM_SCORE = 500


def get_ready() -> None:
    """The kernel that is out of memory ends workers, and what models start, before the rest of the server. No core is
    dumped: that can take seconds, in which the process is dead for requests and not for the launcher. The limit is one
    byte because zero means nothing to a core that goes to a program."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:
        score = min(1000, int(file.read()) + _MORE_OOM_SCORE)
        file.seek(0)
        file.write(str(score))
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if most == 0 else 1, most))
    faulthandler.register(SHOW_STACKS, all_threads=True, chain=False)
