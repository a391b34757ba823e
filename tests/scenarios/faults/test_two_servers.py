"""Two servers of one user on one machine have nothing to do with each other."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shm.segment import SHARED_MEMORY_FOLDER, name_prefix
from tests.client_memory import client_memory
from tests.scenarios.faults.programs import wait_for
from tests.scenarios.faults.traffic import SharedMemoryClient
from tests.scenarios.faults.watch import watching, workers
from tests.scenarios.harness import Server, orphans, serving


def segments_of(server: Server) -> set[str]:
    """Of those in /dev/shm, the ones that its processes have open."""
    found = set()
    for pid in server.pids():
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = os.readlink(f"/proc/{pid}/fd/{name}")
            if path.startswith(f"{SHARED_MEMORY_FOLDER}/{name_prefix()}"):
                found.add(os.path.basename(path))
    return found


@pytest.mark.timeout(60)
def test_two_servers(simple_repository: Path, make_run_dir: Callable[[], Path]) -> None:
    """One is killed as a whole, started again, and stopped, while the other one is asked."""
    doomed_dir = make_run_dir()
    with (
        serving([simple_repository], make_run_dir()) as server,
        client_memory(4096) as memory,
        client_memory(4096) as other_memory,
    ):
        doomed = Server([simple_repository], doomed_dir)
        try:
            doomed.start()
            client, other = SharedMemoryClient(server, memory), SharedMemoryClient(doomed, other_memory)
            client.register()
            other.register()
            assert (client.infer(1), other.infer(2)) == ("", "")
            segments, others, pids = segments_of(server), segments_of(doomed), workers(server)
            assert segments and others and not segments & others
            with watching(server, bystanders=False):
                doomed.kill_everything()
                # Whoever sweeps, at a start or after a death, removes what the dead server left, and nothing else.
                assert others <= set(orphans())
                again = Server([simple_repository], doomed_dir, http_port=doomed.http_port)
                doomed = again
                doomed.start()
                wait_for(doomed, lambda: not orphans())
                assert client.infer(3) == ""
                other = SharedMemoryClient(doomed, other_memory)
                other.register()
                assert other.infer(4) == ""
                other.unregister()
                assert doomed.stop() == 0, doomed.report()
                assert not doomed.leftovers(), doomed.report()
                assert client.infer(5) == ""
            assert segments <= set(os.listdir(SHARED_MEMORY_FOLDER))
            assert workers(server) == pids
            client.unregister()
        finally:
            doomed.kill_everything()
