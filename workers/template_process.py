"""The launcher's end of the template. It imports little: the template then starts while the launcher still imports."""

import contextlib
import socket
import subprocess
import sys
import time


def module_command(module: str, *arguments: str) -> list[str]:
    """Runs one of our modules with this interpreter, which has to find the same modules as this process."""
    flags = ["-P"] if getattr(sys.flags, "safe_path", False) else []
    return [sys.executable, *flags, "-m", module, *arguments]


class TemplateProcess:
    """``connection``: SEQPACKET, to the template and to what it is forking; end of file when all of these are gone or
    have said what they had to say. ``started``: monotonic, in seconds. Raises ``OSError``."""

    def __init__(self) -> None:
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.popen = subprocess.Popen(
                module_command("workers.template", str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError:
            self.connection.close()
            raise
        finally:
            theirs.close()
        self.started = time.monotonic()

    def abandon(self) -> None:
        """It hangs, or a worker does that it is forking. What they have said can still be read; then comes the end of
        file, and a worker that has not spoken does not live."""
        self.popen.kill()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Ends it and waits for it."""
        self.connection.close()
        self.popen.kill()
        self.popen.wait()
