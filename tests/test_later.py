import subprocess
import sys

import pytest

from conch.later import Later


def test_it_is_the_module() -> None:
    asyncio = Later("asyncio")
    assert asyncio.Event is sys.modules["asyncio"].Event
    assert asyncio.subprocess.PIPE == subprocess.PIPE
    with pytest.raises(AttributeError):
        _ = asyncio.Nothing
    with pytest.raises(ModuleNotFoundError):
        _ = Later("no_such_module").anything


def test_workers_start_without_what_few_need() -> None:
    code = """
import sys
import workers.template
from workers.backends.base import backend_class
backend_class("python", "")
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25, check=True)
    imported = set(done.stdout.split())
    assert "workers.asking" in imported
    assert not imported & {"asyncio", "ssl", "subprocess", "tempfile", "onnxruntime"}
