"""The control plane: ZeroMQ over ``ipc://`` in the run directory.

The broker binds one ROUTER, everyone else connects a DEALER. All sockets are made here, so that every option is set on
purpose and in one place.

A ZeroMQ descriptor is edge-triggered: it becomes readable once and then stays silent until the socket has been drained.
Whoever waits on ``fileno()`` calls ``receive_nowait`` until it returns None on every wake-up, *and again after every
send*.
"""

import os
import struct
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from conch.channels import BadMessage
from conch.unreadable import UNREADABLE

Out = TypeVar("Out")
In = TypeVar("In")

#: control messages are small; the model table and file overrides are the largest
MAX_MESSAGE_NBYTES = 96 * 1024 * 1024
#: in-flight caps bound the queues; this bounds what a stalled peer can pile up
HIGH_WATER_MARK = 100_000
RECONNECT_MS = 20
#: libzmq's ZMQ_IPC_FILTER_UID, which pyzmq does not name in every version
_IPC_FILTER_UID = 59

#: first frame of what a monitor sends: the event and its value
_MONITOR_EVENT = struct.Struct("=hi")
_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_NBYTES)
    return socket


class RouterChannel(Generic[Out, In]):
    """The broker's end: many peers, told apart by their routing id."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path, incoming: type[In] | Any) -> None:
        self.socket = _socket(context, zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
        self.socket.setsockopt(_IPC_FILTER_UID, os.geteuid())
        self.socket.bind(f"ipc://{path}")
        # past pyzmq's Python layer and its enums, which cost more than the call
        core: Any = super(zmq.Socket, self.socket)
        self._send = core.send
        self._receive = core.recv
        self._get = core.get
        self._decode = msgspec.msgpack.Decoder(incoming).decode
        self._encode = msgspec.msgpack.Encoder().encode

    def send_nowait(self, peer: bytes, message: Out) -> bool:
        """False if the peer is unknown (EHOSTUNREACH), gone, or its pipe is full (EAGAIN)."""
        encoded = self._encode(message)
        try:  # two sends are faster than send_multipart; only the first can fail, because it chooses the pipe
            self._send(peer, _NOBLOCK_MORE)
            self._send(encoded, _NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def receive_nowait(self) -> tuple[bytes, In] | None:
        """The next message and its sender's routing id. Raises ``BadMessage``."""
        try:
            peer = self._receive(_NOBLOCK)
            frame = self._receive(_NOBLOCK, False)
        except zmq.Again:
            return None
        if frame.more:
            self.socket.recv_multipart(zmq.NOBLOCK)
            raise BadMessage("more than one frame")
        try:
            return peer, self._decode(frame.buffer)
        except UNREADABLE as error:
            raise BadMessage(str(error)) from error

    def is_readable(self) -> bool:
        """Whether ``receive_nowait`` has something; cheaper than asking it when the answer is no."""
        return bool(self._get(_EVENTS) & _POLLIN)

    def fileno(self) -> int:
        return int(self.socket.getsockopt(zmq.FD))

    def close(self) -> None:
        self.socket.close()


class DealerChannel(Generic[Out, In]):
    """Everyone else's end: one connection to the broker, which may come and go.

    ``connection_changes`` tells of it: after every ``True`` the owner says HELLO.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], path: Path, routing_id: bytes, incoming: type[In] | Any
    ) -> None:
        self.socket = _socket(context, zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, routing_id)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self.socket.connect(f"ipc://{path}")
        core: Any = super(zmq.Socket, self.socket)
        self._send = core.send
        self._receive = core.recv
        self._get = core.get
        self._decode = msgspec.msgpack.Decoder(incoming).decode
        self._encode = msgspec.msgpack.Encoder().encode

    def send_nowait(self, message: Out) -> bool:
        """False if not connected or the pipe is full. What was accepted shortly before a disconnection is lost, also
        in the moment between ``connection_changes`` telling of it and this method returning False."""
        try:
            self._send(self._encode(message), _NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive_nowait(self) -> In | None:
        """Raises ``BadMessage``."""
        try:
            frame = self._receive(_NOBLOCK)
        except zmq.Again:
            return None
        return self._decoded(frame)

    def is_readable(self) -> bool:
        """Whether ``receive_nowait`` has something."""
        return bool(self._get(_EVENTS) & _POLLIN)

    def receive(self, timeout_ms: int) -> In | None:
        """Waits at most ``timeout_ms`` (-1: for ever) for a message. Raises ``BadMessage``."""
        if not self.socket.poll(timeout_ms):
            return None
        return self.receive_nowait()

    def _decoded(self, frame: bytes) -> In:
        try:
            message: In = self._decode(frame)
        except UNREADABLE as error:
            raise BadMessage(str(error)) from error
        return message

    def connection_changes(self) -> list[bool]:
        """What happened to the connection since the last call, in order: True up, False down."""
        changes: list[bool] = []
        while True:
            try:
                frames = self.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return changes
            # not by zmq.utils.monitor, which imports asyncio: 40 ms of every process's start
            event, _ = _MONITOR_EVENT.unpack(frames[0])
            changes.append(event == zmq.EVENT_HANDSHAKE_SUCCEEDED)

    def fileno(self) -> int:
        return int(self.socket.getsockopt(zmq.FD))

    def monitor_fileno(self) -> int:
        """Becomes readable when ``connection_changes`` may have something."""
        return int(self.monitor.getsockopt(zmq.FD))

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()
