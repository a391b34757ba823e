"""No room for tensors: a /dev/shm that is tiny or filled by others, and no memory at all."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shm.segment import SHARED_MEMORY_FOLDER
from tests.scenarios.conftest import Serve, copy_examples
from tests.scenarios.faults.limits import no_new_memory
from tests.scenarios.faults.models import say, write_victim
from tests.scenarios.faults.watch import pids_of, watching
from tests.scenarios.harness import Server, running

LARGE = "x" * (3 << 20)
UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]


@dataclass
class PrivateServer(Server):
    """With a ``/dev/shm`` of its own, of ``size``."""

    size: str = ""

    def command(self) -> list[str]:
        mount = f'mount -t tmpfs -o size={self.size} tmpfs {SHARED_MEMORY_FOLDER} && exec "$@"'
        return [*UNSHARE, "sh", "-c", mount, "sh", *super().command()]

    @property
    def folder(self) -> Path:
        """The server's ``/dev/shm`` as this process can reach it."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root{SHARED_MEMORY_FOLDER}")

    def segments(self) -> list[str]:
        return [path.name for path in self.folder.glob("conch-*")]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = copy_examples(tmp_path / "models", "simple")
    write_victim(path)
    return path


def private(repository: Path, run_dir: Path, size: str, *flags: str) -> PrivateServer:
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("a private mount namespace is not permitted here")
    return PrivateServer([repository], run_dir, ["--allow-metrics=false", *flags], size=size)


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """By somebody else, to the last byte."""
    path = folder / "somebody-elses"
    with path.open("wb") as file:
        free = os.statvfs(folder)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
    try:
        yield
    finally:
        path.unlink()


def test_tiny_from_the_start(repository: Path, run_dir: Path) -> None:
    """As in a container: it is not used at all. What is larger than the arenas may become is refused."""
    with running(private(repository, run_dir, "1m", "--worker-arena-nbytes=1048576")) as server:
        assert isinstance(server, PrivateServer)
        assert server.segments() == []
        with watching(server):
            assert say(server, "hello") == (200, "hello")
            status, text = say(server, LARGE)
            assert (status, text.startswith("the output memory is full")) == (503, True), text[:200]
            assert say(server, "hello") == (200, "hello")


def test_filled_while_the_server_runs(repository: Path, run_dir: Path) -> None:
    """Nobody notices: more memory comes from elsewhere, as long as the machine has some."""
    with running(private(repository, run_dir, "260m")) as server:
        assert isinstance(server, PrivateServer)
        assert say(server, "hello") == (200, "hello")
        with watching(server):
            before = server.segments()
            assert before
            with filled(server.folder):
                assert say(server, LARGE) == (200, LARGE)
                assert server.segments() == before
            assert say(server, 2 * LARGE) == (200, 2 * LARGE)
            assert len(server.segments()) > len(before)


def test_no_memory_at_all(repository: Path, serve: Serve) -> None:
    """Requests that fit into what there is go on; others are refused at once, until there is memory again."""
    server = serve(repository, "--allow-metrics=false", "--allow-grpc=false")
    assert say(server, "hello") == (200, "hello")
    with watching(server) as watch:
        [frontend] = pids_of(server, "http")
        with no_new_memory(frontend):
            for _ in range(3):
                assert say(server, LARGE) == (503, "the server's memory for inputs is full; try again later")
                assert say(server, "hello") == (200, "hello")
        assert say(server, LARGE) == (200, LARGE)
        with no_new_memory(watch.worker_pid("victim")):
            for _ in range(3):
                status, text = say(server, 2 * LARGE)
                assert (status, text[:12], text[-17:]) == (503, "no memory fo", "; try again later"), text[:200]
                assert say(server, "hello") == (200, "hello")
        assert say(server, 2 * LARGE) == (200, 2 * LARGE)
