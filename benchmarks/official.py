"""Loads that the official client makes: ``perf_analyzer`` measures, and ``tritonclient`` looks at an answer first."""

import os
from dataclasses import dataclass
from typing import Any

import numpy
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, shared_memory

from benchmarks import models, perf_analyzer
from benchmarks.load import LoadFailed, Measurement
from benchmarks.servers import Server

CLIENTS: dict[str, Any] = {"http": tritonclient.http, "grpc": tritonclient.grpc}


def address(server: Server, protocol: str) -> str:
    return server.grpc_address if protocol == "grpc" else server.address


def measure(
    server: Server, protocol: str, model: str, arguments: list[str], clients: int, seconds: float
) -> Measurement:
    """``clients`` synchronous clients, each with one request at a time. Raises ``LoadFailed``."""
    level = ["--concurrency-range", str(clients)]
    [report] = perf_analyzer.run(model, protocol, address(server, protocol), [*level, *arguments], seconds)
    return Measurement(report.inferences_per_s, report.p50_s, report.p99_s)


def must_be(answer: numpy.ndarray | None, expected: numpy.ndarray, server: Server) -> None:
    if answer is None or not numpy.array_equal(answer, expected):
        raise LoadFailed(f"{server.name} answers something else than what is right")


def in_shared_memory(nbytes: int) -> list[str]:
    return ["--shared-memory", "system", "--output-shared-memory-size", str(nbytes)]


@dataclass(frozen=True)
class AddSub:
    """``protocol``: http or grpc."""

    protocol: str

    def check(self, server: Server) -> None:
        library = CLIENTS[self.protocol]
        values = models.add_sub_inputs()
        inputs = [library.InferInput(name, list(each.shape), "INT32") for name, each in values.items()]
        for tensor, each in zip(inputs, values.values(), strict=True):
            tensor.set_data_from_numpy(each)
        with library.InferenceServerClient(address(server, self.protocol)) as client:
            try:
                answer = client.infer("simple", inputs)
            except InferenceServerException as error:
                raise LoadFailed(f"{server.name}: {error}") from None
        must_be(answer.as_numpy("OUTPUT0"), values["INPUT0"] + values["INPUT1"], server)

    def measure(self, server: Server, clients: int, seconds: float) -> Measurement:
        return measure(server, self.protocol, "simple", [], clients, seconds)


@dataclass(frozen=True)
class Identity:
    """``nbytes`` there and back: in the messages, or in system shared memory of the client."""

    protocol: str
    nbytes: int
    in_shared_memory: bool = False

    @property
    def arguments(self) -> list[str]:
        shape = ["--shape", f"INPUT0:{self.nbytes}"]
        return shape + in_shared_memory(self.nbytes) if self.in_shared_memory else shape

    def check(self, server: Server) -> None:
        library = CLIENTS[self.protocol]
        with library.InferenceServerClient(address(server, self.protocol)) as client:
            try:
                (self._ask_in_memory if self.in_shared_memory else self._ask)(library, client, server)
            except InferenceServerException as error:
                raise LoadFailed(f"{server.name}: {error}") from None

    def measure(self, server: Server, clients: int, seconds: float) -> Measurement:
        return measure(server, self.protocol, "identity", self.arguments, clients, seconds)

    def _ask(self, library: Any, client: Any, server: Server) -> None:
        values = models.random_bytes(self.nbytes)
        tensor = library.InferInput("INPUT0", [self.nbytes], "UINT8")
        tensor.set_data_from_numpy(values)
        must_be(client.infer("identity", [tensor]).as_numpy("OUTPUT0"), values, server)

    def _ask_in_memory(self, library: Any, client: Any, server: Server) -> None:
        """The region has the input first, and room for the output behind it."""
        values, name = models.random_bytes(self.nbytes), f"benchmark-{os.getpid()}"
        region = shared_memory.create_shared_memory_region(name, f"/{name}", 2 * self.nbytes)
        try:
            shared_memory.set_shared_memory_region(region, [values])
            client.register_system_shared_memory(name, f"/{name}", 2 * self.nbytes)
            tensor = library.InferInput("INPUT0", [self.nbytes], "UINT8")
            tensor.set_shared_memory(name, self.nbytes)
            output = library.InferRequestedOutput("OUTPUT0")
            output.set_shared_memory(name, self.nbytes, offset=self.nbytes)
            client.infer("identity", [tensor], outputs=[output])
            client.unregister_system_shared_memory(name)
            answer = shared_memory.get_contents_as_numpy(region, numpy.uint8, [self.nbytes], offset=self.nbytes)
            must_be(answer.copy(), values, server)
        finally:
            shared_memory.destroy_shared_memory_region(region)


@dataclass(frozen=True)
class Chain:
    """``nbytes`` in system shared memory of the client, through a model that asks two others."""

    nbytes: int

    def check(self, server: Server) -> None:
        values = models.random_bytes(self.nbytes)
        tensor = tritonclient.http.InferInput("IN", [self.nbytes], "UINT8")
        tensor.set_data_from_numpy(values)
        with tritonclient.http.InferenceServerClient(server.address) as client:
            try:
                answer = client.infer("chain", [tensor]).as_numpy("OUT")
            except InferenceServerException as error:
                raise LoadFailed(f"{server.name}: {error}") from None
        must_be(answer, values + 2, server)

    def measure(self, server: Server, clients: int, seconds: float) -> Measurement:
        arguments = ["--shape", f"IN:{self.nbytes}", *in_shared_memory(self.nbytes)]
        return measure(server, "http", "chain", arguments, clients, seconds)
