"""The private directory that holds a running server's sockets, locks, logs and small state files."""

import os
import stat
from pathlib import Path

from conch.errors import Internal

#: a Unix socket's path may have 107 bytes; the longest name below the run directory needs 40 of them
MAX_RUN_DIR_NBYTES = 67


def new_peer_id() -> str:
    """Random name of one process incarnation, 16 hex digits, never reused."""
    return os.urandom(8).hex()  # as secrets.token_hex, which loads OpenSSL


class RunDir:
    """Paths of one server. ``create`` makes them; everything else only names them.

    broker.ipc            ZeroMQ ROUTER of the broker
    broker.data           SEQPACKET socket of the broker, where requesters and workers connect for requests and batches
    broker.lock           held (a record lock) by the broker while it lives; holds its pid and ports
    launcher.lock         held by the launcher
    serve.lock            held by ``conch serve``
    supervisor.lock       held by supervisord; holds its pid and ports, so it tells whether a server runs here
    supervisord.pid       its pid; it removes the file in the end
    supervisor.sock       supervisord's control socket (``supervisorctl``, ``conch status``)
    debug-HASH.sock       where ``conch debug`` attaches to a model that ``--debug`` names
    debug-HASH.lock       held by the ``conch debug`` that is attached
    requesters/ID.sock    SEQPACKET socket where a requester's responses arrive
    workers/ID.json       one per live worker, written by the launcher, for its successor
    packages/             links to our packages, for workers in an environment of their own
    loaded.json           explicit loads and overrides, written by the broker, for its successor
    settings.json         log and trace settings that clients changed, likewise; gone when supervisord starts
    logs/                 one file per process, and models/NAME.log per model
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.broker_socket = self.path / "broker.ipc"
        self.broker_data_socket = self.path / "broker.data"
        self.broker_lock = self.path / "broker.lock"
        self.launcher_lock = self.path / "launcher.lock"
        self.serve_lock = self.path / "serve.lock"
        self.supervisor_lock = self.path / "supervisor.lock"
        self.supervisor_socket = self.path / "supervisor.sock"
        self.requesters = self.path / "requesters"
        self.workers = self.path / "workers"
        self.packages = self.path / "packages"
        self.loaded = self.path / "loaded.json"
        self.changed_settings = self.path / "settings.json"
        self.logs = self.path / "logs"
        self.model_logs = self.logs / "models"

    def requester_socket(self, requester: str) -> Path:
        return self.requesters / f"{requester}.sock"

    def model_log(self, model: str) -> Path:
        """Where a model's output goes. A model's name may hold characters that a file's must not."""
        name = "".join(character if character.isalnum() or character in "-_." else "_" for character in model)
        return self.model_logs / f"{name.lstrip('.-') or '_'}.log"

    def debug_socket(self, model: str) -> Path:
        import hashlib  # it loads OpenSSL, and few processes need it

        return self.path / f"debug-{hashlib.sha256(model.encode()).hexdigest()[:8]}.sock"

    def debug_lock(self, model: str) -> Path:
        return self.debug_socket(model).with_suffix(".lock")

    def worker_file(self, worker: str) -> Path:
        return self.workers / f"{worker}.json"

    def create(self) -> None:
        """Makes the directory and its folders with mode 0700. Idempotent.

        Raises ``Internal`` if the path is too long for sockets, cannot be made, belongs to somebody else or holds
        something else.
        """
        if len(os.fsencode(self.path)) > MAX_RUN_DIR_NBYTES:
            raise Internal(
                f"the run directory's path has {len(os.fsencode(self.path))} bytes, sockets below it allow at most "
                f"{MAX_RUN_DIR_NBYTES}; choose a shorter one with --run-dir"
            )
        self._refuse_a_shared_folder()
        for folder in (self.path, self.requesters, self.workers, self.logs, self.model_logs):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise Internal(
                    f"cannot make the run directory {self.path} ({error.strerror}); choose another one with --run-dir"
                ) from error
        found = self.path.stat()
        if found.st_uid != os.geteuid():
            raise Internal("the run directory belongs to another user; choose another one with --run-dir")
        if stat.S_IMODE(found.st_mode) & 0o077:
            self.path.chmod(0o700)

    def clear_sockets(self, of_broker: bool) -> None:
        """Removes what processes that were killed could not. ``of_broker``: it has certainly ended, too."""
        for path in (*self.requesters.glob("*.sock"), *self.path.glob("debug-*")):
            path.unlink(missing_ok=True)
        if of_broker:
            self.broker_socket.unlink(missing_ok=True)
            self.broker_data_socket.unlink(missing_ok=True)

    def _refuse_a_shared_folder(self) -> None:
        """``--run-dir=/tmp`` must not close /tmp to everybody else."""
        try:
            open_to_others = stat.S_IMODE(self.path.stat().st_mode) & 0o077
            if open_to_others and not self.logs.exists() and any(self.path.iterdir()):
                raise Internal(
                    f"the run directory {self.path} holds other files and is open to other users; "
                    "choose an empty or a new one with --run-dir"
                )
        except OSError:
            pass  # not there yet; or making it says what is wrong
