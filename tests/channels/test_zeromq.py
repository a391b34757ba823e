"""conch.channels.zeromq: one broker that comes and goes, many peers, and no message that waits unseen."""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from conch.channels import BadMessage
from conch.channels.zeromq import DealerChannel, RouterChannel
from conch.messages import Batch, Cancel, Welcome

Message = Welcome | Cancel
Router = RouterChannel[Message, Message]
Dealer = DealerChannel[Message, Message]
Context = zmq.Context[zmq.Socket[bytes]]


@pytest.fixture
def context() -> Iterator[Context]:
    context: Context = zmq.Context()
    yield context
    context.term()  # hangs if a channel left a socket behind


@pytest.fixture
def router(context: Context, run_dir: Path) -> Iterator[Router]:
    router = Router(context, run_dir / "broker.ipc", Message)
    yield router
    router.close()


@pytest.fixture
def dealer(context: Context, run_dir: Path) -> Iterator[Dealer]:
    dealer = Dealer(context, run_dir / "broker.ipc", b"peer", Message)
    yield dealer
    dealer.close()


def await_connection(dealer: Dealer, changes: list[bool]) -> None:
    """Until the monitor has told of exactly ``changes``."""
    seen: list[bool] = []
    deadline = time.monotonic() + 10
    while seen != changes:
        assert time.monotonic() < deadline, seen
        assert len(seen) < len(changes), seen
        select.select([dealer.monitor_fileno()], [], [], 0.1)
        seen += dealer.connection_changes()


def received_by(router: Router) -> tuple[bytes, Message]:
    assert router.socket.poll(10_000)
    received = router.receive_nowait()
    assert received is not None
    return received


def test_both_directions_in_order(router: Router, dealer: Dealer) -> None:
    await_connection(dealer, [True])
    sent = [Cancel("r", id) for id in range(1000)]
    assert all(dealer.send_nowait(message) for message in sent)
    assert [received_by(router) for _ in sent] == [(b"peer", message) for message in sent]
    assert router.receive_nowait() is None
    assert all(router.send_nowait(b"peer", message) for message in sent)
    assert [dealer.receive(10_000) for _ in sent] == sent
    assert dealer.receive_nowait() is None
    assert dealer.receive(0) is None


def test_nobody_there(context: Context, router: Router, run_dir: Path) -> None:
    assert not router.send_nowait(b"nobody", Welcome(1, 1))
    lonely = Dealer(context, run_dir / "nobody.ipc", b"peer", Message)
    assert not lonely.send_nowait(Welcome(1, 1))
    assert lonely.connection_changes() == []
    lonely.close()


def test_peer_that_left_is_unknown(context: Context, router: Router, run_dir: Path) -> None:
    dealer = Dealer(context, run_dir / "broker.ipc", b"gone", Message)
    await_connection(dealer, [True])
    dealer.send_nowait(Welcome(1, 1))
    received_by(router)
    dealer.close()
    deadline = time.monotonic() + 10
    while router.send_nowait(b"gone", Welcome(1, 1)):
        assert time.monotonic() < deadline


def test_another_broker_takes_over(context: Context, dealer: Dealer, run_dir: Path) -> None:
    for epoch in (1, 2, 3):
        router = Router(context, run_dir / "broker.ipc", Message)
        await_connection(dealer, [True])
        assert dealer.send_nowait(Cancel("hello", epoch))
        assert received_by(router) == (b"peer", Cancel("hello", epoch))
        assert router.send_nowait(b"peer", Welcome(1, epoch))
        assert dealer.receive(10_000) == Welcome(1, epoch)
        router.close()
        await_connection(dealer, [False])
        deadline = time.monotonic() + 10
        while dealer.send_nowait(Cancel("nobody", epoch)):
            assert time.monotonic() < deadline


BROKER = """
import sys
from pathlib import Path
import zmq
from conch.channels.zeromq import RouterChannel
from conch.messages import Welcome
router = RouterChannel(zmq.Context(), Path(sys.argv[1]), Welcome)
while True:
    router.socket.poll()
    while (received := router.receive_nowait()) is not None:
        assert router.send_nowait(received[0], received[1])
"""


def test_a_killed_broker_is_noticed(dealer: Dealer, run_dir: Path) -> None:
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", BROKER, str(run_dir / "broker.ipc")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as broker:
            await_connection(dealer, [True])
            assert dealer.send_nowait(Welcome(1, 7))
            assert dealer.receive(10_000) == Welcome(1, 7)
            broker.kill()
        await_connection(dealer, [False])


def test_edge_triggered_descriptor_misses_nothing_when_drained(router: Router, dealer: Dealer) -> None:
    """Waits on descriptors alone, as an event loop does: drained on every wake-up and after every send."""
    await_connection(dealer, [True])
    outstanding = rounds = 0
    to_send = 2000
    deadline = time.monotonic() + 20
    while to_send or outstanding:
        for _ in range(min(to_send, 7)):
            assert dealer.send_nowait(Cancel("r", to_send))
            to_send -= 1
            outstanding += 1
        progress = False
        while (request := router.receive_nowait()) is not None:
            assert router.send_nowait(*request)
            progress = True
        while dealer.receive_nowait() is not None:
            outstanding -= 1
            progress = True
        rounds += 1
        if not progress and not to_send and outstanding:
            descriptors = [router.fileno(), dealer.fileno()]
            assert select.select(descriptors, [], [], deadline - time.monotonic())[0], "fell silent"
    assert rounds > 1


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xc1"],
        [b""],
        [b"a", b"b"],
        [msgspec.msgpack.encode(Batch(1, 1, ()))],
        [msgspec.msgpack.encode(["Unknown", 1])],
        [b"\x91" * 100_000],
    ],
    ids=["reserved", "empty", "frames", "direction", "tag", "deep"],
)
def test_router_refuses_nonsense_and_reads_on(
    context: Context, router: Router, run_dir: Path, frames: list[bytes]
) -> None:
    peer = context.socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, 0)
    peer.connect(f"ipc://{run_dir}/broker.ipc")
    peer.send_multipart(frames)
    peer.send(msgspec.msgpack.encode(Welcome(1, 1)))
    with pytest.raises(BadMessage):
        received_by(router)
    assert received_by(router)[1] == Welcome(1, 1)
    peer.close()


def test_dealer_refuses_nonsense_and_reads_on(context: Context, router: Router, dealer: Dealer) -> None:
    await_connection(dealer, [True])
    dealer.send_nowait(Welcome(1, 1))
    received_by(router)
    router.socket.send_multipart([b"peer", b"nonsense"])
    assert router.send_nowait(b"peer", Welcome(1, 2))
    with pytest.raises(BadMessage):
        dealer.receive(10_000)
    assert dealer.receive(10_000) == Welcome(1, 2)


def test_bytes_that_are_no_zeromq_hurt_nobody(router: Router, dealer: Dealer, run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(run_dir / "broker.ipc"))
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    await_connection(dealer, [True])
    assert dealer.send_nowait(Welcome(1, 1))
    assert received_by(router) == (b"peer", Welcome(1, 1))


STRANGER = """
import os, socket, sys
peer = socket.socket(socket.AF_UNIX)
if sys.argv[2] == "nobody":
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
peer.connect(sys.argv[1])
peer.settimeout(10)
print(peer.recv(1))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_turned_away(context: Context, router: Router, run_dir: Path) -> None:
    run_dir.chmod(0o711)  # as if the directory did not protect the socket
    (run_dir / "broker.ipc").chmod(0o777)
    for user, greeting in (("root", b"\xff"), ("nobody", b"")):
        stranger = subprocess.run(
            [sys.executable, "-c", STRANGER, str(run_dir / "broker.ipc"), user],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert (stranger.stdout, stranger.stderr) == (f"{greeting!r}\n", "")
