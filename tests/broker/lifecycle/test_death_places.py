"""Where a worker crashed or hung, as operators are told."""

import pytest

from conch.messages import Died
from tests.broker.lifecycle.support import loaded
from tests.broker.lifecycle.world import snapshot

LIBRARY = '  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at\n'
OBEY = '  File "/models/m/1/model.py", line 8 in obey\n'
EXECUTE = '  File "/models/m/1/model.py", line 16 in execute\n'
OTHER_MODEL = '  File "/models/m2/1/model.py", line 3 in execute\n'
CONCH = '  File "/opt/conch/workers/backends/python.py", line 167 in _call\n'
CALLED = "in string_at, __init__.py line 519, called in obey, model.py line 8"


@pytest.mark.parametrize(
    ("frames", "place"),
    [
        ([OBEY, EXECUTE, CONCH], "in obey, model.py line 8"),
        ([LIBRARY, OBEY, EXECUTE, CONCH], CALLED),
        ([LIBRARY, OTHER_MODEL, CONCH], "in string_at, __init__.py line 519"),
        ([LIBRARY, CONCH, "  ...\n"], "in string_at, __init__.py line 519"),
    ],
)
@pytest.mark.parametrize("reason", ["", "ran longer than its EXECUTION_TIMEOUT_S of 2 s and was killed"])
def test_the_place_is_the_models(frames: list[str], place: str, reason: str) -> None:
    world = loaded(snapshot())
    (worker,) = world.alive
    dump = (
        'Fatal Python error: Segmentation fault\n\nThread 0x00007fe6812fe6c0 (most recent call first):\n  File "/a.py"'
        ", line 1 in run\n\nCurrent thread 0x00007fe68abd9b80 (most recent call first):\n"
    )
    died = Died(worker.id, worker.pid, None, 11, f"{dump}{''.join(frames)}\nExtension modules: a (total: 1)\n", reason)
    worker.state = "dead"
    world.do(world.machine.died(died, 1, world.now))
    how = f"{reason}," if reason else "was killed by SIGSEGV"
    assert world.machine.instances(world.now)[0].last_error == f"the worker of instance 'm_0_0' {how} {place}"
