"""A load over gRPC streaming: one request, very many responses."""

import time
from dataclasses import dataclass

import grpc
import numpy
from tritonclient.grpc import service_pb2

from benchmarks.load import LoadFailed, Measurement
from benchmarks.servers import Server

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
MODEL = "counter"
ANSWER_WITHIN_S = 60


@dataclass(frozen=True)
class Counting:
    """``responses`` to each request. Of the client, only gRPC itself takes part: messages stay bytes meanwhile."""

    responses: int

    def check(self, server: Server) -> None:
        messages, _ = self._ask(server)
        for index, message in enumerate(messages):
            response = service_pb2.ModelStreamInferResponse.FromString(message)
            if response.error_message:
                raise LoadFailed(f"{server.name}: {response.error_message}")
            [given] = numpy.frombuffer(response.infer_response.raw_output_contents[0], numpy.int32)
            if given != index:
                raise LoadFailed(f"{server.name}: response {given} where {index} should be")

    def measure(self, server: Server, clients: int, seconds: float) -> Measurement:
        """Responses a second, of one stream after the other. The latencies are those from one response to the next."""
        assert clients == 1
        gaps: list[float] = []
        end = time.perf_counter() + seconds
        while not gaps or time.perf_counter() < end:
            _, times = self._ask(server)
            gaps += numpy.diff(times).tolist()
        return Measurement(len(gaps) / sum(gaps), *numpy.percentile(gaps, (50, 99)).tolist())

    def _ask(self, server: Server) -> tuple[list[bytes], list[float]]:
        """What was answered, and when each of it arrived."""
        request = service_pb2.ModelInferRequest(model_name=MODEL, id="1")
        request.inputs.add(name="COUNT", datatype="INT32", shape=[1])
        request.raw_input_contents.append(numpy.array([self.responses], numpy.int32).tobytes())
        messages, times = [], [time.perf_counter()]
        try:
            with grpc.insecure_channel(server.grpc_address) as channel:
                call = channel.stream_stream(METHOD)(iter([request.SerializeToString()]), timeout=ANSWER_WITHIN_S)
                for message in call:
                    messages.append(message)
                    times.append(time.perf_counter())
        except grpc.RpcError as error:
            raise LoadFailed(f"{server.name}: {error}") from None
        if len(messages) != self.responses:
            raise LoadFailed(f"{server.name}: {len(messages)} responses instead of {self.responses}")
        return messages, times
