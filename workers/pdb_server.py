"""pdb for a terminal that attaches through a Unix socket."""

import contextlib
import inspect
import logging
import os
import pdb
import select
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from conch.debugger import DETACHED
from workers.debugging import place_of

logger = logging.getLogger("conch.workers.pdb_server")


class _Session(pdb.Pdb):
    """A terminal that is attached. One that goes away, or quits, lets the model go on."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._input = connection.makefile("r", encoding="utf-8", errors="replace")
        self.detached = False
        super().__init__(stdin=self, stdout=self, nosigint=True, readrc=False)  # type: ignore[arg-type]

    def readline(self) -> str:
        try:
            return self._input.readline()
        except OSError:
            return ""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._connection.sendall(text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """``write`` keeps nothing back."""

    def do_quit(self, arg: str) -> bool:
        """Detaches; the model goes on."""
        self.clear_all_breaks()
        self.set_continue()
        self.write(DETACHED)
        self.detach()
        return True

    do_q = do_exit = do_EOF = do_quit

    def detach(self) -> None:
        self.detached = True
        self._input.close()
        self._connection.close()

    @property
    def has_gone(self) -> bool:
        """The terminal has, without a word."""
        if self.detached:
            return True
        try:
            return not self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


class PdbServer:
    """Takes over ``path`` from the worker that this one replaces."""

    def __init__(self, path: Path, model: str) -> None:
        self._model = model
        self._session: _Session | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        own = path.with_suffix(f".{os.getpid()}")
        self._listener.bind(str(own))
        self._listener.listen(1)
        own.rename(path)

    def stop(self, *_: Any, **__: Any) -> None:
        """As ``sys.breakpointhook``."""
        caller = sys._getframe(1)
        session = self._attached()
        if session is None:
            logger.warning("breakpoint() at %s: waiting for 'conch debug %s'", place_of(caller), self._model)
        while session is None:
            session = self._accept()
        session.set_trace(caller)

    def run(self, execute: Callable[[Any], Any], requests: Any) -> Any:
        """``execute(requests)``, stopped at its first line if somebody is attached."""
        session = self._attached()
        if session is None:
            return execute(requests)
        if inspect.iscoroutinefunction(execute):
            return _stopped(session, execute(requests))
        return session.runcall(execute, requests)

    def _attached(self) -> _Session | None:
        if self._session is not None and self._session.has_gone:
            self._session.detach()
            self._session = None
        while self._session is None and select.select([self._listener], [], [], 0)[0]:
            self._accept()
        return self._session

    def _accept(self) -> _Session | None:
        """Waits for a terminal; None if it has gone since."""
        connection, _ = self._listener.accept()
        session = _Session(connection)
        if session.has_gone:
            session.detach()
        else:
            self._session = session
        return self._session


async def _stopped(session: _Session, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Stops at the coroutine's first line, in the thread that runs it: what pdb's ``runcall`` does for functions."""
    if session.detached:
        return await coroutine
    session.reset()
    sys.settrace(session.trace_dispatch)
    try:
        return await coroutine
    finally:
        sys.settrace(None)
