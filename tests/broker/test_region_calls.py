"""Registering clients' memory with a real broker process: who is told what, and when it is answered."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conch import messages
from conch.messages import Fault, Region, RegionTable, RegisterCudaRegion, RegisterRegion, UnregisterRegions
from shm.region_files import open_held, open_key
from shm.segment import SHARED_MEMORY_FOLDER, Segment, name_prefix
from tests.broker.harness import BrokerProcess, Requester, around, broker, write_model
from tests.client_memory import ClientMemory, client_memory

NBYTES = 8192


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    write_model(path, "echo")
    return path


@pytest.fixture
def memory() -> Iterator[ClientMemory]:
    with client_memory(NBYTES) as memory:
        yield memory


def call(requester: Requester, message: Any, *others: Requester) -> Fault | None:
    """``others`` see a change before it is answered."""
    requester.send(message)
    for other in others:
        other.expect(RegionTable)
    answer = requester.expect(messages.Answer)
    assert answer.call == message.call and answer.result is None
    return answer.fault


def register(
    requester: Requester, name: str, memory: ClientMemory, *others: Requester, nbytes: int = NBYTES
) -> Fault | None:
    return call(requester, RegisterRegion(1, name, memory.key, 0, nbytes), *others)


def expect_regions(requester: Requester, *names: str) -> tuple[Region, ...]:
    """Waits for a table with these names."""
    while True:
        table = requester.expect(RegionTable)
        if {region.name for region in table.regions} == set(names):
            return table.regions


def held(requester: Requester, region: Region, closing: ExitStack) -> Region:
    """The region as this requester, which is the test's process, has it open for its next HELLO."""
    opened = open_held(region.holder_pid, region.descriptor, region.file)
    closing.callback(os.close, opened.descriptor)
    return Region(
        "system", region.name, region.number, region.offset, region.nbytes, region.key, os.getpid(), *opened[:2]
    )


def memory_of(region: Region) -> bytes:
    opened = open_held(region.holder_pid, region.descriptor, region.file)
    try:
        return os.pread(opened.descriptor, 4, region.offset)
    finally:
        os.close(opened.descriptor)


class TestRegister:
    def test_everybody_can_open_it_once_it_is_answered(
        self, run_dir: Path, repository: Path, memory: ClientMemory
    ) -> None:
        memory.view[4096:4100] = b"here"
        with broker(run_dir, repository) as process, around(run_dir) as peers:
            first, second = peers.requester(), peers.requester()
            assert expect_regions(first) == expect_regions(second) == ()
            first.send(RegisterRegion(1, "a", memory.key, 4096, 100))
            (region,) = expect_regions(second, "a")
            assert first.expect(messages.Answer).fault is None
            assert (region.key, region.offset, region.nbytes) == (memory.key, 4096, 100)
            memory.unlink()
            assert memory_of(region) == b"here"
            assert call(second, UnregisterRegions(2, "system", "a"), first) is None
            assert call(second, UnregisterRegions(3, "system", "never")) is None
            assert "Traceback" not in process.log

    def test_refusals(self, run_dir: Path, repository: Path, memory: ClientMemory) -> None:
        with broker(run_dir, repository), around(run_dir) as peers:
            requester = peers.requester()
            assert register(requester, "a", memory) is None
            assert register(requester, "b", memory, nbytes=NBYTES + 1) == Fault(
                "InvalidArgument", "failed to register shared memory region 'b': invalid args"
            )
            assert register(requester, "a", memory) == Fault(
                "AlreadyExists", "shared memory region 'a' already in manager"
            )
            for key in ("/none", "/a/b", "/.."):
                assert call(requester, RegisterRegion(2, "b", key, 0, 1)) == Fault(
                    "Internal", f"Unable to open shared memory region: '{key}'"
                )
            fault = call(requester, RegisterRegion(2, "b", memory.key, 2**64 - 1, 2**64 - 1))
            assert fault is not None and fault.kind == "InvalidArgument"

    def test_a_fifo_or_a_link_does_not_stop_the_broker(
        self, run_dir: Path, repository: Path, memory: ClientMemory
    ) -> None:
        path = Path(SHARED_MEMORY_FOLDER, memory.key.strip("/") + "-other")
        with broker(run_dir, repository), around(run_dir) as peers:
            requester = peers.requester()
            os.mkfifo(path)
            try:
                assert call(requester, RegisterRegion(1, "a", path.name, 0, 1)) is not None
            finally:
                path.unlink()
            path.symlink_to(SHARED_MEMORY_FOLDER + memory.key)
            try:
                assert call(requester, RegisterRegion(1, "a", path.name, 0, 1)) is not None
            finally:
                path.unlink()

    def test_our_own_segments_are_refused_without_a_word_about_them(self, run_dir: Path, repository: Path) -> None:
        segment = Segment(4096)
        alias = Path(SHARED_MEMORY_FOLDER, "innocent")
        try:
            os.link(SHARED_MEMORY_FOLDER + segment._name, alias)
            with broker(run_dir, repository), around(run_dir) as peers:
                requester = peers.requester()
                for key in (segment._name, "innocent"):
                    fault = call(requester, RegisterRegion(1, "a", key, 0, 4096))
                    assert fault is not None and fault.kind == "InvalidArgument"
                    assert name_prefix() not in fault.message
                assert register_nothing_left(requester)
        finally:
            alias.unlink()
            segment.close()

    def test_cuda_regions_are_listed_beside_the_others(
        self, run_dir: Path, repository: Path, memory: ClientMemory
    ) -> None:
        with broker(run_dir, repository), around(run_dir) as peers:
            requester = peers.requester()
            expect_regions(requester)
            assert register(requester, "a", memory) is None
            assert call(requester, RegisterCudaRegion(2, "b", b"h" * 64, 1, 10)) is None
            fault = call(requester, RegisterCudaRegion(2, "a", b"h" * 64, 1, 10))
            assert fault is not None and fault.kind == "AlreadyExists"
            assert call(requester, UnregisterRegions(3, "system")) is None
            other = peers.requester()
            (region,) = expect_regions(other, "b")
            assert (region.kind, region.handle, region.device, region.nbytes) == ("cuda", b"h" * 64, 1, 10)

    def test_the_number_of_regions_and_of_descriptors_has_an_end(
        self, run_dir: Path, repository: Path, memory: ClientMemory
    ) -> None:
        with broker(run_dir, repository) as process, around(run_dir) as peers:
            requester = peers.requester()
            assert register(requester, "r0", memory) is None
            done = 1
            while (fault := register(requester, f"r{done}", memory)) is None:
                done += 1
            assert done <= 1024 and fault.kind == "Overloaded"
            assert opened_in(process, memory) == done
            assert call(requester, UnregisterRegions(2, "system")) is None
            assert opened_in(process, memory) == 0

    def test_without_a_descriptor_left_it_says_so_and_goes_on(
        self, run_dir: Path, repository: Path, memory: ClientMemory
    ) -> None:
        with broker(run_dir, repository) as process, around(run_dir) as peers:
            requester = peers.requester()
            assert register(requester, "a", memory) is None
            limit(process, 3)
            fault = register(requester, "b", memory)
            assert fault is not None and fault.kind == "Overloaded"
            assert opened_in(process, memory) == 1
            # one is left: which number that is changes while it reads files
            for attempt in range(50):
                used = descriptors(process)
                limit(process, next(number for number in range(max(used) + 2) if number not in used) + 1)
                fault = register(requester, f"c{attempt}", memory)
                limit(process, 1024)
                if fault is not None:
                    break
            assert fault is not None and fault.kind == "Overloaded"
            assert opened_in(process, memory) == 1 + attempt
            assert register(requester, "b", memory) is None


def register_nothing_left(requester: Requester) -> bool:
    """The last table that was sent holds no region."""
    requester.hello()
    return expect_regions(requester) == ()


def opened_in(process: BrokerProcess, memory: ClientMemory) -> int:
    return sum(memory.key in os.readlink(path) for path in Path(f"/proc/{process.process.pid}/fd").iterdir())


def descriptors(process: BrokerProcess) -> set[int]:
    return {int(path.name) for path in Path(f"/proc/{process.process.pid}/fd").iterdir()}


def limit(process: BrokerProcess, descriptors: int) -> None:
    subprocess.run(["prlimit", f"--pid={process.process.pid}", f"--nofile={descriptors}:"], check=True)


class TestWaiting:
    def test_an_answer_waits_for_everybody_who_lives(
        self, run_dir: Path, repository: Path, memory: ClientMemory
    ) -> None:
        with broker(run_dir, repository), around(run_dir) as peers:
            frontend = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            caller, stopped = peers.requester(), peers.requester(pid=frontend.pid)
            stopped.reads_tables = False
            started = time.monotonic()
            assert register(caller, "a", memory) is None
            assert 0.9 < time.monotonic() - started < 5
            caller.send(RegisterRegion(2, "b", memory.key, 0, 1))
            started = time.monotonic()
            frontend.kill()
            frontend.communicate()
            assert caller.expect(messages.Answer).fault is None
            assert time.monotonic() - started < 0.9
            started = time.monotonic()
            assert register(caller, "c", memory) is None
            assert time.monotonic() - started < 0.9

    def test_a_stopped_frontend_gets_what_counts_then(
        self, run_dir: Path, repository: Path, memory: ClientMemory
    ) -> None:
        with broker(run_dir, repository), around(run_dir) as peers:
            frontend = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            caller, stopped = peers.requester(), peers.requester(pid=frontend.pid)
            stopped.reads_tables = False
            for number in range(30):
                caller.send(RegisterRegion(number, f"r{number}", memory.key, 0, 1))
            answered = [caller.expect(messages.Answer).call for _ in range(30)]
            assert answered == list(range(30))
            stopped.reads_tables = True
            assert expect_regions(stopped) == ()
            assert len(stopped.expect(RegionTable).regions) == 30
            frontend.kill()
            frontend.communicate()

    def test_loads_wait_too(self, run_dir: Path, repository: Path) -> None:
        with broker(run_dir, repository, model_control_mode="explicit"), around(run_dir) as peers:
            caller, other = peers.requester(), peers.requester()
            launcher = peers.launcher()
            other.reads_tables = False
            caller.send(messages.LoadModel(5, "echo"))
            launcher.spawn()
            caller.expect_table("echo", "READY")
            assert caller.receive(0.2) is None
            other.reads_tables = True
            other.expect_table("echo", "READY")
            assert caller.expect(messages.Answer) == messages.Answer(5)


class TestRestart:
    def test_regions_live_on_in_the_requesters(self, run_dir: Path, repository: Path, memory: ClientMemory) -> None:
        with around(run_dir) as peers, ExitStack() as closing:
            with broker(run_dir, repository) as process:
                first, second = peers.requester(), peers.requester()
                expect_regions(second)
                register(first, "a", memory, second)
                call(first, RegisterCudaRegion(2, "cuda", b"h" * 64, 1, 10), second)
                first.send(RegisterRegion(3, "b", memory.key, 0, 10))
                known = {region.name: region for region in expect_regions(second, "a", "cuda", "b")}
                mine = (held(first, known["a"], closing), known["cuda"])
                all_of_them = (*mine, held(second, known["b"], closing))
                process.kill()
            memory.view[:4] = b"more"
            memory.unlink()
            with broker(run_dir, repository) as successor:
                first.connect()
                second.connect()
                epoch = first.hello(regions=mine).epoch
                assert {r.number for r in expect_regions(first, "a", "cuda")} == {r.number for r in mine}
                second.hello(regions=all_of_them)
                # nobody was ever told of fewer regions than it has
                table = second.expect(RegionTable)
                assert {region.number for region in table.regions} == {region.number for region in all_of_them}
                found = {region.name: region for region in expect_regions(first, "a", "cuda", "b")}
                assert found["a"].holder_pid == successor.process.pid
                assert memory_of(found["a"]) == memory_of(found["b"]) == b"more"
                # unregistered since: a HELLO that was under way does not bring it back
                assert call(first, UnregisterRegions(3, "system", "a"), second) is None
                second.hello(regions=all_of_them)
                assert {region.name for region in second.expect(RegionTable).regions} == {"cuda", "b"}
                assert call(first, UnregisterRegions(4, "system", "b"), second) is None
                second.hello(regions=all_of_them, epoch=epoch)
                assert {region.name for region in second.expect(RegionTable).regions} == {"cuda"}

    def test_unregistered_before_its_only_holder_is_back(
        self, run_dir: Path, repository: Path, memory: ClientMemory
    ) -> None:
        with around(run_dir) as peers, ExitStack() as closing:
            with broker(run_dir, repository) as process:
                first, second = peers.requester(), peers.requester()
                for name in "ab":
                    first.send(RegisterRegion(1, name, memory.key, 0, 1))
                listed = tuple(held(second, region, closing) for region in expect_regions(second, "a", "b"))
                process.kill()
            with broker(run_dir, repository):
                first.connect()
                second.connect()
                first.hello()
                assert call(first, UnregisterRegions(3, "system", "a")) is None
                second.hello(regions=listed)
                assert {region.name for region in second.expect(RegionTable).regions} == {"b"}

    def test_what_the_holder_has_no_more_is_not_taken_over(
        self, run_dir: Path, repository: Path, memory: ClientMemory
    ) -> None:
        opened = open_key(memory.key)
        gone = Region("system", "a", 70, 0, 10, memory.key, os.getpid(), *opened[:2])
        os.close(opened.descriptor)
        with broker(run_dir, repository), around(run_dir) as peers:
            requester = peers.requester()
            expect_regions(requester)
            requester.hello(regions=(gone,))
            assert expect_regions(requester) == ()
            assert register(requester, "a", memory) is None
