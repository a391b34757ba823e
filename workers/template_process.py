"""The launcher's end of the template. It imports little: the template then starts while the launcher still imports."""

import os
import socket
import subprocess
import sys
import time


class TemplateProcess:
    """``connection``: to the template, SEQPACKET. ``descriptor``: its pidfd. ``started``: monotonic, in seconds."""

    def __init__(self) -> None:
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # the template's interpreter has to find the same modules as this one
            flags = ["-P"] if getattr(sys.flags, "safe_path", False) else []
            self.popen = subprocess.Popen(
                [sys.executable, *flags, "-m", "workers.template", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.descriptor = os.pidfd_open(self.popen.pid)
        self.started = time.monotonic()

    def close(self) -> None:
        """Ends it and waits for it."""
        self.connection.close()
        self.popen.kill()
        self.popen.wait()
        os.close(self.descriptor)
