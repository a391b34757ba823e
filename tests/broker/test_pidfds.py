"""Pidfds of peers, also while there is no descriptor for one."""

import resource
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from broker.pidfds import Deaths


@pytest.fixture
def poll() -> Iterator[select.epoll]:
    with select.epoll() as poll:
        yield poll


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_death(poll: select.epoll, sleeper: "subprocess.Popen[bytes]") -> None:
    deaths = Deaths(poll)
    deaths.watch(b"peer", sleeper.pid, 0.0)
    deaths.watch(b"peer", sleeper.pid, 0.0)
    assert deaths.retry(0.0) == []
    sleeper.kill()
    [(descriptor, _)] = poll.poll(10)
    assert deaths.peer(descriptor) == b"peer"
    assert deaths.peer(descriptor) is None
    sleeper.wait(10)
    deaths.watch(b"peer", sleeper.pid, 1.0)
    assert deaths.retry(1.0) == [b"peer"]
    assert deaths.retry(2.0) == []
    deaths.close()


@pytest.mark.parametrize("dies", [True, False])
def test_without_a_descriptor(poll: select.epoll, sleeper: "subprocess.Popen[bytes]", dies: bool) -> None:
    """It does not count as dead, and is watched as soon as that is possible."""
    deaths = Deaths(poll)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        deaths.watch(b"peer", sleeper.pid, 10.0)
        assert deaths.retry_at == 10.5
        assert deaths.retry(10.5) == []
        assert deaths.retry_at == 11.0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if dies:
        sleeper.kill()
        sleeper.wait(10)
        assert deaths.retry(11.0) == [b"peer"]
    else:
        assert deaths.retry(11.0) == []
        sleeper.kill()
        [(descriptor, _)] = poll.poll(10)
        assert deaths.peer(descriptor) == b"peer"
    assert not deaths.retry_at
    deaths.close()
