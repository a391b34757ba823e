"""A frontend as a process of its own, for the tests."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from conch.run_dir import RunDir
from conch.settings import Settings
from tests.frontends.fakes import FakeBroker, eventually
from tests.frontends.samples import table

ADDRESS = "127.0.0.1"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, port)) == 0


class Process:
    """``python -m frontends.PROTOCOL`` with its log."""

    def __init__(self, protocol: str, run_dir: Path, port: int, **settings: Any) -> None:
        self.port = port
        settings[f"{protocol}_port"] = port
        self._module = f"frontends.{protocol}"
        settings.setdefault("drain_delay_secs", 0)
        self._settings = Settings(run_dir=str(run_dir), exit_timeout_secs=5, **settings)
        self._process: asyncio.subprocess.Process
        self.log = ""

    async def start(self) -> None:
        environ = {**os.environ, **self._settings.to_environ()}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", self._module, env=environ, stderr=asyncio.subprocess.PIPE
        )

    async def until_logged(self, text: str) -> None:
        assert self._process.stderr is not None
        while text not in self.log:
            line = await asyncio.wait_for(self._process.stderr.readline(), 10)
            assert line, self.log
            self.log += line.decode()

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        _, rest = await asyncio.wait_for(self._process.communicate(), 10)
        self.log += rest.decode()
        assert self._process.returncode is not None
        return self._process.returncode


async def check_stop_while_models_load(process: Process, run_dir: Path) -> None:
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    broker.table = table(server="starting")
    await process.start()
    await eventually(lambda: bool(broker.hellos))
    process.terminate()
    assert await process.ended() == 0
    broker.close()
