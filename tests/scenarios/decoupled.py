"""Decoupled models for the scenarios, and a raw client of gRPC streams."""

import queue
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from conch.protos import load_service_pb2
from conch.tensors import pack
from tests.scenarios.models import HEAD

pb = load_service_pb2()

TIMEOUT_S = 30.0
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"

# As many responses as its input says, each with that number.
SQUARE = """
import threading

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            threading.Thread(target=self.respond, args=(request.get_response_sender(), value)).start()

    def respond(self, sender, value):
        for _ in range(value[0]):
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

# One response for each element of IN, DELAY (ms) apart; takes the next request after WAIT (ms).
REPEAT = """
import threading

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            values, delays, wait = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("IN", "DELAY", "WAIT")
            )
            threading.Thread(target=self.respond, args=(request.get_response_sender(), values, delays)).start()
            time.sleep(wait[0] / 1000)

    def respond(self, sender, values, delays):
        for index, (value, delay) in enumerate(zip(values, delays)):
            time.sleep(delay / 1000)
            outputs = [
                pb_utils.Tensor("OUT", numpy.array([value], numpy.int32)),
                pb_utils.Tensor("IDX", numpy.array([index], numpy.uint32)),
            ]
            sender.send(pb_utils.InferenceResponse(outputs))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

# Does what its string input says, step by step, in a thread for each request: "r text" responds, "e text" responds with
# an error, a second "f" makes it the last; "n 5" counts to 5; "big 1000" responds with 1000 bytes until cancelled.
TELL = """
import threading

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def response(text):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", numpy.array([text.encode()], dtype=numpy.object_))])


def failure(text):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, pb_utils.TritonError.UNAVAILABLE))


class TritonPythonModel:
    def initialize(self, args):
        self.running = 0
        self.sent = 0
        self.lock = threading.Lock()

    def execute(self, requests):
        for request in requests:
            order = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0].decode()
            if order == "raise":
                raise ValueError("told to raise")
            threading.Thread(target=self.obey, args=(request, order), daemon=True).start()

    def obey(self, request, order):
        with self.lock:
            self.running += 1
        try:
            for step in order.split(","):
                self.step(request, request.get_response_sender(), *step.partition(" ")[::2])
        finally:
            with self.lock:
                self.running -= 1

    def step(self, request, sender, word, rest):
        if word == "r":
            sender.send(response(rest))
        elif word == "rf":
            sender.send(response(rest), FINAL)
        elif word == "e":
            sender.send(failure(rest))
        elif word == "ef":
            sender.send(failure(rest), FINAL)
        elif word == "f":
            sender.send(flags=FINAL)
        elif word == "parameters":
            sender.send(response(request.parameters()))
        elif word == "s":
            time.sleep(float(rest))
        elif word == "n":
            for i in range(int(rest)):
                sender.send(response(str(i)))
        elif word == "big":
            large = response("x" * int(rest))
            while not sender.is_cancelled():
                sender.send(large)
                self.sent += 1
            sender.send(flags=FINAL)
        elif word == "state":
            sender.send(response("%d %d" % (self.running - 1, self.sent)), FINAL)
        elif word == "die":
            os.kill(os.getpid(), 9)
"""

_TENSOR = '{ name: "%s", data_type: TYPE_%s, dims: [ %d ] }'


def write_decoupled_model(
    repository: Path, name: str, code: str, inputs: dict[str, tuple[str, int]], outputs: dict[str, tuple[str, int]]
) -> None:
    """Tensors: name -> datatype (configuration spelling, without ``TYPE_``) and its only dim."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    lines = ['backend: "python"', "model_transaction_policy { decoupled: true }"]
    lines += ["input " + _TENSOR % (tensor, *kind) for tensor, kind in inputs.items()]
    lines += ["output " + _TENSOR % (tensor, *kind) for tensor, kind in outputs.items()]
    lines += ["instance_group { count: 1, kind: KIND_CPU }"]
    (folder / "config.pbtxt").write_text("\n".join(lines))
    (folder / "1" / "model.py").write_text(HEAD + code)


def write_decoupled_models(repository: Path) -> None:
    one = {"IN": ("INT32", 1)}, {"OUT": ("INT32", 1)}
    write_decoupled_model(repository, "square", SQUARE, *one)
    inputs = {"IN": ("INT32", -1), "DELAY": ("UINT32", -1), "WAIT": ("UINT32", 1)}
    write_decoupled_model(repository, "repeat", REPEAT, inputs, {"OUT": ("INT32", 1), "IDX": ("UINT32", 1)})
    write_decoupled_model(repository, "tell", TELL, {"IN": ("STRING", 1)}, {"OUT": ("STRING", 1)})


def telling(order: str, id: str = "", model: str = "tell", **parameters: Any) -> Any:
    """A request to ``tell``, or another model with a string."""
    request = pb.ModelInferRequest(model_name=model, id=id)
    request.inputs.add(name="IN", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(pack([order.encode()]))
    for key, value in parameters.items():
        if isinstance(value, bool):
            request.parameters[key].bool_param = value
        else:
            request.parameters[key].int64_param = value
    return request


def text_of(answer: Any) -> str:
    """The response's only string, or the error."""
    if answer.error_message:
        return str(answer.error_message)
    return str(answer.infer_response.raw_output_contents[0][4:].decode())


class Stream:
    """``with Stream(url) as stream``: one gRPC stream on a connection of its own; cancelled at the end if it has not
    ended."""

    def __init__(self, url: str, *requests: Any, metadata: Any = ()) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(url, options)
        self.send(*requests)
        self.call = self._channel.stream_stream(STREAM)(
            iter(self._requests.get, None), timeout=TIMEOUT_S, metadata=metadata
        )

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self.call.cancel()
        self._channel.close()

    def send(self, *requests: Any) -> None:
        for request in requests:
            self._requests.put(request.SerializeToString())

    def end(self) -> None:
        self._requests.put(None)

    def answer(self) -> Any:
        return pb.ModelStreamInferResponse.FromString(next(self.call))

    def rest(self) -> Iterator[Any]:
        """All further answers. Raises ``grpc.RpcError`` if the stream ends with a status other than OK."""
        self.end()
        for payload in self.call:
            yield pb.ModelStreamInferResponse.FromString(payload)
