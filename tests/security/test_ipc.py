"""Between the processes: what lies in the run directory is for its user only, and what comes through its sockets, from
whatever program of that user, ends no process and fills no log.

That a second server on the same run directory is refused is in ``tests/scenarios/test_start_stop.py``.
"""

import array
import configparser
import contextlib
import json
import os
import random
import socket
import stat
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from conch.messages import PROTOCOL_VERSION, DataLink, Link
from conch.messages.directions import ToBroker, ToBrokerData, WorkerToRequester
from conch.run_dir import RunDir
from conch.unreadable import UNREADABLE
from shm.segment import SHARED_MEMORY_FOLDER, name_prefix
from tests.scenarios.harness import Server
from tests.scenarios.load import Load
from tests.security.conftest import Witness

FRAMES = 20_000
GROWN_NBYTES = 64 << 20
#: of all logs together: the first ten of a kind, then every thousandth, and tracebacks are one line each
MOST_LINES = 400
SOMEBODY_ELSE = """
import json, os, socket, sys
sockets, files = json.loads(sys.argv[1])
try:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
except OSError:
    sys.exit("nobody else")

def connect(kind, path):
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.connect(path)

kinds = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
tries = [(connect, kind, path) for kind in kinds for path in sockets] + [(os.open, path, os.O_RDONLY) for path in files]
for function, *arguments in tries:
    try:
        function(*arguments)
        print(*arguments)
    except PermissionError:
        print("refused")
"""
ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------------------------------ who may enter


def test_everything_is_the_user_s_own(server: Server) -> None:
    """Folders, sockets, locks, logs, and the memory that processes share."""
    paths = [server.run_dir, *server.run_dir.rglob("*")]
    assert sum(stat.S_ISSOCK(path.lstat().st_mode) for path in paths) >= 5
    for path in paths:
        found = path.lstat()
        assert found.st_uid == os.geteuid(), path
        assert found.st_mode & 0o077 == 0 or path.is_symlink(), (path, oct(found.st_mode))
    for name in os.listdir(SHARED_MEMORY_FOLDER):
        if name.startswith(name_prefix()):
            assert os.stat(f"{SHARED_MEMORY_FOLDER}/{name}").st_mode & 0o777 == 0o600


def test_nothing_has_a_name_without_permissions(server: Server) -> None:
    """Abstract sockets have none; and nothing listens on an address but what was asked for."""
    inodes = set()
    for pid in server.pids():
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inodes.add(os.readlink(path))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[7].startswith("@"):
            assert f"socket:[{fields[6]}]" not in inodes, line
    listening = set()
    for table in Path("/proc/net").glob("tcp*"):  # there may be no IPv6
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                listening.add(fields[1])
    ports = {server.http_port, server.grpc_port, server.metrics_port}
    assert listening == {f"0100007F:{port:04X}" for port in ports}, "127.0.0.1 only"


def test_other_users_cannot_connect(server: Server) -> None:
    """Where the tests run as root, another user really tries; the modes say the rest."""
    if os.geteuid() != 0:
        return
    sockets = [str(path) for path in server.run_dir.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    files = [str(server.run_dir), f"{SHARED_MEMORY_FOLDER}/{own_segment()}"]
    command = [sys.executable, "-c", SOMEBODY_ELSE, json.dumps([sockets, files])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if done.stderr == "nobody else\n":
        pytest.skip("there is only one user here")
    assert (done.stdout, done.stderr) == ("refused\n" * (2 * len(sockets) + len(files)), "")


def own_segment() -> str:
    return next(name for name in os.listdir(SHARED_MEMORY_FOLDER) if name.startswith(name_prefix()))


@pytest.mark.parametrize("name", ["supervisord.conf", "conch/supervisord.conf"])
def test_supervisord_has_no_network(name: str) -> None:
    """Its control socket is a file that nobody else can reach, and runs nothing but what it is for."""
    config = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    config.read(ROOT / name)
    assert "inet_http_server" not in config
    assert config["unix_http_server"]["chmod"] == "0700"
    assert config["unix_http_server"]["file"].startswith("%(ENV_CONCH_RUN_DIR)s/")
    assert config["supervisorctl"]["serverurl"].startswith("unix://")
    assert config["supervisord"]["umask"] == "077"
    rpc = {
        section: config[section]["supervisor.rpcinterface_factory"] for section in config if "rpcinterface" in section
    }
    assert set(rpc.values()) == {"supervisor.rpcinterface:make_main_rpcinterface", "conch.cli.supervised:make"}
    for section in config:
        if section.startswith("program:"):
            command = config[section]["command"].split()
            assert command[:3] == ["python3", "-P", "-m"] and len(command) == 4, command


# ----------------------------------------------------------------------------------------------------- what comes in


def example(kind: Any) -> Any:
    """A value of this type, of the simplest."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return arguments[0]
    if origin in (typing.Union, types.UnionType):
        return None if type(None) in arguments else example(arguments[0])
    if origin is not None:
        return origin()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return kind(**{field.name: example(hints[field.name]) for field in msgspec.structs.fields(kind)})
    return kind(1) if kind in (int, float) else kind()


def messages(union: Any) -> list[bytes]:
    """One of each kind, and each with a name that is no text."""
    whole = [msgspec.msgpack.encode(example(kind)) for kind in typing.get_args(union)]
    return [*whole, *(data[:3] + b"\xff" + data[4:] for data in whole)]


def damaged(data: bytes, choice: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(choice.randint(1, 4)):
        match choice.randint(0, 4):
            case 0 if found:
                found[choice.randrange(len(found))] = choice.randrange(256)
            case 1:
                del found[choice.randrange(len(found) + 1) :]
            case 2:
                found += choice.randbytes(choice.randint(1, 50))
            case 3 if found:
                # the length of a text, a list or a map, or a number, at its largest
                found[choice.randrange(len(found))] = choice.choice((0xC6, 0xDB, 0xDD, 0xDF, 0xCF, 0xD3, 0xCA, 0xC1))
            case _:
                found[choice.randrange(len(found) + 1) :] = b"\x91" * choice.choice((10, 2000))  # nested lists
    return bytes(found)


def frames(union: Any, count: int, choice: random.Random) -> Iterator[bytes]:
    whole = messages(union)
    for _ in range(count):
        match choice.randint(0, 5):
            case 0:
                yield choice.randbytes(choice.choice((0, 1, 2, 20, 1000)))
            case 1:
                yield choice.choice(whole)
            case _:
                yield damaged(choice.choice(whole), choice)


@pytest.fixture
def descriptors(tmp_path: Path) -> Iterator[list[int]]:
    """What nobody would map, and what can be: by a segment that is empty, or that will be cut."""
    reader, writer = os.pipe()
    empty = os.memfd_create("empty")
    page = os.memfd_create("page")
    os.truncate(page, 4096)
    found = [reader, writer, empty, page, os.open("/dev/null", os.O_RDWR), os.open(tmp_path, os.O_RDONLY)]
    yield found
    for descriptor in found:
        os.close(descriptor)


def log_lines(server: Server) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (server.run_dir / "logs").rglob("*.log"))


@pytest.fixture
def attacked(server: Server, witness: Witness) -> Iterator[Server]:
    """Others are served all the time; afterwards every process is the one that it was, and the logs are not full."""
    lines = log_lines(server)
    with Load(server.http_port, clients=2) as load:
        yield server
    load.check()
    witness.check(GROWN_NBYTES)
    assert log_lines(server) - lines < MOST_LINES, server.report()


def test_strangers_at_the_broker_s_socket(attacked: Server) -> None:
    """ZeroMQ, with names of their own and of others; nobody of them has said HELLO."""
    choice = random.Random(1)
    paths = RunDir(attacked.run_dir)
    alive = [path.stem.encode() for path in (*paths.requesters.iterdir(), *paths.workers.iterdir())]
    context = zmq.Context()
    names = [*alive, *(b"C" + name for name in alive), *(choice.randbytes(8).replace(b"\0", b"x") for _ in range(20))]
    try:
        for name in names:
            with context.socket(zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.LINGER, 2000)
                dealer.setsockopt(zmq.ROUTING_ID, name)
                dealer.connect(f"ipc://{paths.broker_socket}")
                for data in frames(ToBroker, FRAMES // 2 // len(names), choice):
                    if not claims_to_be_somebody(data):
                        dealer.send_multipart([data] if choice.randint(0, 9) else [data, b"", data])
    finally:
        context.term()


def claims_to_be_somebody(data: bytes) -> bool:
    """A HELLO that is right: whoever can send one is the user, who may do anything to the server."""
    try:
        message = msgspec.msgpack.decode(data, type=ToBroker)
    except UNREADABLE:
        return False
    return getattr(message, "protocol", 0) == PROTOCOL_VERSION


def seqpacket(path: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found.settimeout(5)
    found.connect(str(path))
    return found


def stream(path: Path) -> socket.socket:
    """Waits until there is room among those that the server has not accepted yet."""
    found = socket.socket(socket.AF_UNIX)
    found.connect(str(path))
    return found


def talk(
    path: Path, union: Any, first: bytes, count: int, choice: random.Random, descriptors: list[int] | None = None
) -> None:
    """Many connections of a few messages each, half of them introduced as somebody whom nobody knows."""
    left = count
    while left > 0:
        with seqpacket(path) as connection:
            try:
                if choice.randint(0, 1):
                    connection.send(first)
                for data in frames(union, choice.randint(1, 20), choice):
                    left -= 1
                    rights = []
                    if descriptors is not None and choice.randint(0, 2) == 0:
                        sent = array.array("i", choice.choices(descriptors, k=choice.choice((1, 1, 1, 2, 30))))
                        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, sent)]
                    connection.sendmsg([data], rights)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has been dropped


def test_strangers_on_data_connections(attacked: Server) -> None:
    first = msgspec.msgpack.encode(DataLink(PROTOCOL_VERSION, "stranger"))
    talk(RunDir(attacked.run_dir).broker_data_socket, ToBrokerData, first, FRAMES // 4, random.Random(2))


def test_strangers_at_the_frontends_sockets(attacked: Server, descriptors: list[int]) -> None:
    """They claim to be workers, and bring memory that is none."""
    sockets = list(RunDir(attacked.run_dir).requesters.glob("*.sock"))
    assert len(sockets) >= 2
    first = msgspec.msgpack.encode(Link(PROTOCOL_VERSION, "stranger"))
    for number, path in enumerate(sockets):
        talk(path, WorkerToRequester, first, FRAMES // 4 // len(sockets), random.Random(number), descriptors)


@pytest.mark.parametrize("name", ["broker.ipc", "supervisor.sock"])
def test_bytes_that_are_no_protocol(attacked: Server, name: str) -> None:
    choice = random.Random(4)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
    for number in range(200):
        with stream(attacked.run_dir / name) as client:
            start = (
                b"",
                greeting,
                b"GET / HTTP/1.1\r\n",
                b"POST /RPC2 HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
            )
            try:
                client.sendall(start[number % len(start)] + choice.randbytes(choice.choice((0, 10, 5000))))
            except (BrokenPipeError, ConnectionResetError):
                pass


def test_many_who_say_nothing(attacked: Server) -> None:
    """They hold a descriptor each, and nobody up."""
    paths = RunDir(attacked.run_dir)
    connect: list[Callable[[], socket.socket]] = [
        *([lambda: seqpacket(paths.broker_data_socket)] * 200),
        *([lambda: seqpacket(next(paths.requesters.glob("*.sock")))] * 200),
    ]
    silent = [each() for each in connect]
    assert attacked.ready()
    for each in silent:
        each.close()
