"""What is measured: each case is a load and a number of clients."""

from dataclasses import dataclass
from typing import Protocol

from benchmarks import load, models
from benchmarks.load import Measurement
from benchmarks.models import HttpRequest
from benchmarks.official import AddSub, Chain, Identity
from benchmarks.servers import Server
from benchmarks.streaming import Counting

MIB = 1 << 20
CLASSIFIER_CLIENTS = 4
STREAMED_RESPONSES = 10_000


class Load(Protocol):
    def check(self, server: Server) -> None:
        """One request whose answer is looked at. Raises ``LoadFailed`` if it is not the right one."""

    def measure(self, server: Server, clients: int, seconds: float) -> Measurement:
        """Raises ``LoadFailed`` if a single request fails."""


@dataclass(frozen=True)
class HttpLoad:
    """``long_requests`` as for ``benchmarks.load.measure``."""

    request: HttpRequest
    long_requests: bool = False

    def check(self, server: Server) -> None:
        load.ask_once(server.address, self.request)

    def measure(self, server: Server, clients: int, seconds: float) -> Measurement:
        return load.measure(server.address, self.request, clients, seconds, self.long_requests)


@dataclass(frozen=True)
class Case:
    """``unit`` is how many inferences a measured request counts for."""

    name: str
    load: Load
    clients: int
    unit: int = 1


def number_of(clients: int) -> str:
    return "1 client" if clients == 1 else f"{clients} clients"


def add_sub_cases() -> list[Case]:
    loads: list[tuple[str, Load]] = [
        ("HTTP JSON", HttpLoad(models.add_sub_json())),
        ("HTTP binary", HttpLoad(models.add_sub_binary())),
        ("gRPC", AddSub("grpc")),
    ]
    return [
        Case(f"add/sub, {name}, {number_of(clients)}", load, clients) for name, load in loads for clients in (1, 8, 32)
    ]


def identity_cases() -> list[Case]:
    def loads(nbytes: int) -> list[tuple[str, Load]]:
        return [
            ("HTTP", HttpLoad(models.identity(nbytes))),
            ("gRPC", Identity("grpc", nbytes)),
            ("HTTP, shared memory", Identity("http", nbytes, in_shared_memory=True)),
            ("gRPC, shared memory", Identity("grpc", nbytes, in_shared_memory=True)),
        ]

    return [
        Case(f"identity, {name}, {size} MiB, {number_of(clients)}", load, clients)
        for size in (1, 16)
        for name, load in loads(size * MIB)
        for clients in (1, 4)
    ]


def python_cases() -> list[Case]:
    loads: list[tuple[str, Load]] = [
        ("HTTP", HttpLoad(models.chain(16 * MIB))),
        ("HTTP, shared memory", Chain(16 * MIB)),
    ]
    chains = [
        Case(f"chain of three models, {name}, 16 MiB, {number_of(clients)}", load, clients)
        for name, load in loads
        for clients in (1, 4)
    ]
    name = f"{STREAMED_RESPONSES:,} responses to one request, gRPC streaming"
    return [*chains, Case(name, Counting(STREAMED_RESPONSES), 1)]


def classifier_cases() -> list[Case]:
    return [
        Case(
            f"classifier, batch {size}, {number_of(CLASSIFIER_CLIENTS)}",
            HttpLoad(models.classification(size), long_requests=True),
            CLASSIFIER_CLIENTS,
            size,
        )
        for size in models.CLASSIFIER_BATCH_SIZES
    ]
