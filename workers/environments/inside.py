"""What ``workers.environments.entry`` does once our modules can be found: becomes a worker."""

import signal
import socket

import msgspec

from conch import process
from conch.channels.seqpacket import MAX_MESSAGE_NBYTES
from conch.messages import Spawn
from conch.settings import Settings
from workers import birth

#: where the launcher's connection is
LAUNCHER_DESCRIPTOR = 3


def run() -> None:
    """Takes one ``Spawn`` from the launcher, says ``Spawned``, and is a worker from then on."""
    settings = Settings.from_environ()
    process.begin(settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in workers that were forked
    launcher = socket.socket(fileno=LAUNCHER_DESCRIPTOR)
    launcher.set_inheritable(False)
    frame = launcher.recv(MAX_MESSAGE_NBYTES)
    if frame:  # else the launcher is gone
        birth.live(msgspec.msgpack.decode(frame, type=Spawn), settings, launcher)
