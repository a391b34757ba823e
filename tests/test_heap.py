"""conch.heap: what is freed stays mapped."""

import subprocess
import sys

PROGRAM = """
import resource
import sys
import numpy as np
from conch.heap import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def use():
    arrays = [np.ones(1 << 20, np.uint8) for _ in range(16)]

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=30, check=True
    )
    return int(found.stdout)


def test_the_next_use_finds_its_pages_mapped() -> None:
    assert page_faults("keep") < 0.05 * page_faults("as it is")
