"""conch.channels.seqpacket: order, survival of the sender, descriptors, and peers that send nonsense."""

import array
import os
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conch.channels import BadMessage, ChannelClosed
from conch.channels.seqpacket import MAX_MESSAGE_NBYTES, MessageTooLong, SeqpacketChannel, connect, listen
from conch.messages import Batch, Link, RequesterToWorker, Response, Responses, SegmentAdded, WorkerToRequester

WorkerEnd = SeqpacketChannel[WorkerToRequester, RequesterToWorker]
RequesterEnd = SeqpacketChannel[RequesterToWorker, WorkerToRequester]


@pytest.fixture
def ends(run_dir: Path) -> Iterator[tuple[WorkerEnd, RequesterEnd]]:
    with listen(run_dir / "socket") as listener:
        worker = WorkerEnd(connect(run_dir / "socket"), RequesterToWorker)
        requester = RequesterEnd(listener.accept()[0], WorkerToRequester)
    yield worker, requester
    worker.close()
    requester.close()


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, RequesterEnd]]:
    """A peer that may send anything, and the requester's end."""
    peer, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    requester = RequesterEnd(connection, WorkerToRequester)
    yield peer, requester
    peer.close()
    requester.close()


def response(id: int, parameter: str = "") -> Responses:
    return Responses((Response(id, 1, 0, final=True, parameters={"p": parameter}),))


def drain(channel: RequesterEnd) -> list[object]:
    """Everything until it would wait."""
    received: list[object] = []
    while (got := channel.receive_nowait()) is not None:
        received.append(got[0])
    return received


def test_both_directions_in_order(ends: tuple[WorkerEnd, RequesterEnd]) -> None:
    worker, requester = ends
    assert requester.receive_nowait() is None
    sent: list[WorkerToRequester] = [Link(1, "w"), *(response(id) for id in range(100))]
    assert all(worker.send_nowait(message) for message in sent)
    assert select.select([requester], [], [], 0)[0]
    assert drain(requester) == sent
    assert requester.send_nowait(SegmentAdded(5, 4096))
    assert worker.receive_nowait() == (SegmentAdded(5, 4096), None)


def test_descriptor_arrives_beside_its_message(ends: tuple[WorkerEnd, RequesterEnd]) -> None:
    worker, requester = ends
    read_end, write_end = os.pipe()
    assert worker.send_nowait(response(1))
    assert worker.send_nowait(SegmentAdded(5, 4096), read_end)
    assert worker.send_nowait(response(2))
    os.close(read_end)
    assert requester.receive_nowait() == (response(1), None)
    received = requester.receive_nowait()
    assert received is not None
    message, descriptor = received
    assert message == SegmentAdded(5, 4096)
    assert descriptor is not None
    assert not os.get_inheritable(descriptor)
    os.write(write_end, b"through the kernel")
    assert os.read(descriptor, 100) == b"through the kernel"
    os.close(descriptor)
    os.close(write_end)
    assert requester.receive_nowait() == (response(2), None)


def test_everything_sent_arrives_before_the_end_of_file(ends: tuple[WorkerEnd, RequesterEnd]) -> None:
    worker, requester = ends
    sent = [response(id) for id in range(50)]
    assert all(worker.send_nowait(message) for message in sent)
    worker.close()
    for message in sent:
        assert requester.receive_nowait() == (message, None)
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            requester.receive_nowait()


def test_everything_sent_arrives_though_the_sender_left_ours_unread(ends: tuple[WorkerEnd, RequesterEnd]) -> None:
    worker, requester = ends
    assert requester.send_nowait(SegmentAdded(5, 4096))
    assert worker.send_nowait(response(1))
    worker.close()
    assert requester.receive_nowait() == (response(1), None)
    with pytest.raises(ChannelClosed):
        requester.receive_nowait()


def test_failed_send_loses_nothing_that_can_be_received(ends: tuple[WorkerEnd, RequesterEnd]) -> None:
    worker, requester = ends
    assert requester.send_nowait(SegmentAdded(5, 4096))
    assert worker.send_nowait(response(1))
    worker.close()
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            requester.send_nowait(SegmentAdded(6, 4096))
    assert requester.receive_nowait() == (response(1), None)


SENDER = """
import os, signal, sys
from pathlib import Path
from conch.channels.seqpacket import SeqpacketChannel, connect
from conch.messages import RequesterToWorker, Response, Responses
channel = SeqpacketChannel(connect(Path(sys.argv[1])), RequesterToWorker)
for id in range(100):
    assert channel.send_nowait(Responses((Response(id, 1, 0, final=True),)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_sent_survives_it(run_dir: Path) -> None:
    with listen(run_dir / "socket") as listener:
        sender = subprocess.run(
            [sys.executable, "-c", SENDER, str(run_dir / "socket")],
            timeout=10,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert sender.returncode == -9
        requester = RequesterEnd(listener.accept()[0], WorkerToRequester)
    received = []
    with pytest.raises(ChannelClosed):
        while (got := requester.receive_nowait()) is not None:
            received.append(got[0])
    assert received == [Responses((Response(id, 1, 0, final=True),)) for id in range(100)]
    requester.close()


def test_full_buffer_is_told_and_recovers(ends: tuple[WorkerEnd, RequesterEnd]) -> None:
    worker, requester = ends
    accepted = 0
    while worker.send_nowait(response(accepted)):
        accepted += 1
    assert not select.select([], [worker], [], 0)[1]
    assert [message for message in drain(requester)] == [response(id) for id in range(accepted)]
    assert select.select([], [worker], [], 0)[1]
    assert worker.send_nowait(response(accepted))


def test_what_was_sent_before_more_is_refused_arrives(ends: tuple[WorkerEnd, RequesterEnd]) -> None:
    worker, requester = ends
    assert worker.send_nowait(response(1)) and worker.send_nowait(response(2))
    requester.refuse_more()
    with pytest.raises(ChannelClosed):
        worker.send_nowait(response(3))
    assert requester.receive_nowait() == (response(1), None)
    assert requester.receive_nowait() == (response(2), None)
    with pytest.raises(ChannelClosed):
        requester.receive_nowait()


def test_longest_message_fits_and_a_longer_one_is_refused(ends: tuple[WorkerEnd, RequesterEnd]) -> None:
    worker, requester = ends
    frame = len(msgspec.msgpack.encode(response(1, "x" * 100_000))) - 100_000
    longest = response(1, "x" * (MAX_MESSAGE_NBYTES - frame))
    assert len(msgspec.msgpack.encode(longest)) == MAX_MESSAGE_NBYTES
    assert worker.send_nowait(longest)
    assert requester.receive_nowait() == (longest, None)
    with pytest.raises(MessageTooLong):
        worker.send_nowait(response(1, "x" * (MAX_MESSAGE_NBYTES - frame + 1)))
    assert requester.receive_nowait() is None


def of_another_direction() -> bytes:
    return msgspec.msgpack.encode(Batch(1, 1, ()))


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xc1",
        b"not a message",
        msgspec.msgpack.encode(["Unknown", 1]),
        msgspec.msgpack.encode(["Link", "one", "w"]),
        msgspec.msgpack.encode(["SegmentRetired"]),
        of_another_direction(),
        b"\x91" * 100_000,
        b"x" * (MAX_MESSAGE_NBYTES + 1),
    ],
    ids=["reserved", "text", "unknown", "type", "short", "direction", "deep", "long"],
)
def test_nonsense_is_refused_and_what_follows_is_read(raw: tuple[socket.socket, RequesterEnd], nonsense: bytes) -> None:
    peer, requester = raw
    peer.send(nonsense)
    peer.send(msgspec.msgpack.encode(Link(1, "w")))
    with pytest.raises(BadMessage):
        requester.receive_nowait()
    assert requester.receive_nowait() == (Link(1, "w"), None)


@pytest.mark.parametrize("count", [2, 4, 5, 50])
def test_too_many_descriptors_are_refused_and_closed(raw: tuple[socket.socket, RequesterEnd], count: int) -> None:
    peer, requester = raw
    read_end, write_end = os.pipe()
    rights = array.array("i", [read_end] * count)
    peer.sendmsg([msgspec.msgpack.encode(Link(1, "w"))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    os.close(read_end)
    with pytest.raises(BadMessage):
        requester.receive_nowait()
    with pytest.raises(BrokenPipeError):  # nobody has the read end any more
        os.write(write_end, b"x")
    os.close(write_end)


def test_descriptor_of_a_bad_message_is_closed(raw: tuple[socket.socket, RequesterEnd]) -> None:
    peer, requester = raw
    read_end, write_end = os.pipe()
    rights: list[tuple[int, int, Any]] = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [read_end]))]
    peer.sendmsg([b"nonsense"], rights)
    os.close(read_end)
    with pytest.raises(BadMessage):
        requester.receive_nowait()
    with pytest.raises(BrokenPipeError):
        os.write(write_end, b"x")
    os.close(write_end)


def test_no_descriptor_left_to_receive_one(ends: tuple[WorkerEnd, RequesterEnd]) -> None:
    worker, requester = ends
    assert worker.send_nowait(SegmentAdded(5, 4096), worker.fileno())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(worker.fileno())
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        assert requester.receive_nowait() == (SegmentAdded(5, 4096), None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_nobody_listens(run_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(run_dir / "nobody")
    listen(run_dir / "gone").close()
    with pytest.raises(ConnectionRefusedError):
        connect(run_dir / "gone")
