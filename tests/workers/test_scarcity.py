"""A worker that has no descriptor left."""

import contextlib
import json
import os
import resource
from collections.abc import Iterator

import numpy as np
import pytest

from shm.arena import FIRST_SEGMENT_NBYTES
from tests.workers.harness import Stage, ints
from tests.workers.test_python_model import ECHO


@pytest.fixture
def stage(own_stage: Stage) -> Stage:
    return own_stage


@contextlib.contextmanager
def descriptors_left(stage: Stage, worker: str, count: int) -> Iterator[None]:
    """So many more descriptors than the worker has, and no gaps below."""
    [pid] = [
        file["pid"]
        for file in (json.loads(path.read_bytes()) for path in stage.run_dir.workers.glob("*.json"))
        if file["worker"] == worker
    ]
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest = min(set(range(len(used) + 1)) - used)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest + count, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def ask(stage: Stage, worker: str, elements: int, reconnects: bool = False) -> str:
    """The error's kind, "" for a right answer. ``reconnects``: the answer comes on another connection."""
    array = ints(*range(elements))
    request = stage.requester.request("echo", stage.requester.put("IN", array))
    batch = stage.send(worker, request)
    if reconnects:
        stage.requester.until_closed(worker)
    response = stage.requester.response(worker)
    stage.done(batch)
    stage.requester.free(request)
    if response.error is not None:
        assert response.error.message.endswith("; try again later")
        return response.error.kind
    assert np.array_equal(stage.requester.outputs(response)["OUT"], array)
    return ""


@pytest.mark.parametrize("count", [0, 1])
def test_memory_that_cannot_be_opened(stage: Stage, count: int) -> None:
    """The descriptor is dropped by the kernel, or the mapping has none: that request fails, others go on."""
    worker = stage.ready(stage.model("echo", ECHO))
    assert ask(stage, worker, 8) == ""
    with descriptors_left(stage, worker, count):
        assert ask(stage, worker, FIRST_SEGMENT_NBYTES) == "Overloaded"
        for _ in range(3):
            assert ask(stage, worker, 8) == ""
        assert ask(stage, worker, FIRST_SEGMENT_NBYTES) == "Overloaded"
    assert ask(stage, worker, FIRST_SEGMENT_NBYTES, reconnects=True) == ""
    assert ask(stage, worker, 8) == ""
