"""Shared memory used in every wrong way, over both protocols: nothing is written that was not registered, none of the
server's own memory can be had, and nothing stays open."""

import contextlib
import os
from collections import Counter
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm.segment import SHARED_MEMORY_FOLDER, name_prefix
from tests.client_memory import ClientMemory, client_memory
from tests.scenarios.fuzz.region_clients import Client, GrpcClient, HttpClient
from tests.scenarios.fuzz.region_steps import (
    NBYTES,
    OURS,
    OWN,
    STEPS,
    Infer,
    Register,
    Resize,
    Status,
    Step,
    Unregister,
    Window,
)
from tests.scenarios.fuzz.running import IS_LONG, Bound, fuzzed
from tests.scenarios.fuzz.watch import Finding, Watch, show

pytestmark = pytest.mark.timeout(0 if IS_LONG else 60)

OTHERS_EVERY = 3
#: the same everywhere, so that any window of it says something
PATTERN = bytes(range(256)) * (NBYTES // 256)


def a_segment() -> str:
    """One of the server's."""
    return next(name for name in os.listdir(SHARED_MEMORY_FOLDER) if name.startswith(name_prefix()))


class Session:
    """One client's doings with one piece of memory, and what may have been written."""

    def __init__(self, memory: ClientMemory) -> None:
        self._memory = memory
        self._may_be_written = bytearray(NBYTES)
        self._resized = False
        memory.view[:] = PATTERN

    def do(self, client: Client, step: Step) -> bool:
        match step:
            case Register(name, key, offset, nbytes):
                if key == OURS:
                    if client.register(name, f"/{a_segment()}", 0, 64):
                        raise Finding("a segment of the server's own was registered")
                    return False
                done = client.register(name, self._memory.key if key == OWN else key, offset, nbytes)
                if done and key == OWN:
                    end = offset + nbytes
                    self._may_be_written[offset:end] = b"\1" * len(self._may_be_written[offset:end])
                return done
            case Unregister(name):
                return client.unregister(name)
            case Status(name):
                return client.status(name)
            case Resize(nbytes):
                self._resized = True
                self._memory.resize(nbytes)
                return True
            case Infer():
                return client.infer(step, bytes(64))

    def check(self) -> None:
        """Nothing was written beside what was registered. What was cut off and came back is zero."""
        if self._resized:
            return
        now = bytes(self._memory.view)
        wrong = [i for i in range(NBYTES) if now[i] != PATTERN[i] and not self._may_be_written[i]]
        if wrong:
            raise Finding(f"bytes that were not registered have been written: {wrong[0]} to {wrong[-1]}")


def check_good(client: Client, memory: ClientMemory) -> None:
    """After all that, the region serves as ever."""
    memory.resize(NBYTES)
    memory.view[:64], memory.view[128:192] = PATTERN[:64], bytes(64)
    step = Infer("echo_int32", "INT32", (16,), Window("good", 0, 64), Window("good", 128, 64))
    if not (client.unregister("") and client.register("good", memory.key, 0, NBYTES) and client.infer(step, b"")):
        raise Finding("a good request was refused")
    if memory.view[128:192] != PATTERN[:64]:
        raise Finding("a good request wrote something else")
    if not client.unregister(""):
        raise Finding("the regions could not be unregistered")


def test_shared_memory(watch_grpc: Watch) -> None:
    bound, answers = Bound(), Counter[str]()
    http, grpc = HttpClient(watch_grpc), GrpcClient(watch_grpc)
    clients = (cast(Client, http), cast(Client, grpc))

    def run(steps: list[Step], over_grpc: list[bool]) -> None:
        if bound.over:
            return
        with client_memory(NBYTES) as memory:
            session = Session(memory)
            for step, which in zip(steps, over_grpc, strict=False):
                done = session.do(clients[which], step)
                answers[f"{type(step).__name__} {'done' if done else 'refused'}"] += 1
                watch_grpc.lives()
            session.check()
            check_good(clients[over_grpc[-1]], memory)
        if answers.total() % OTHERS_EVERY == 0:
            watch_grpc.answers_others()

    try:
        fuzzed(250)(given(STEPS, st.lists(st.booleans(), min_size=8, max_size=8))(run))()
    finally:
        for client in (http, grpc):
            with contextlib.suppress(OSError):
                client.close()
        show(watch_grpc, cast(Counter[object], answers))
    watch_grpc.settled()
