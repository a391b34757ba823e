"""A model that does to itself whatever a request says, and how to ask it."""

import json
from pathlib import Path

import grpc

from conch.protos import load_service_pb2
from conch.tensors import pack
from tests.scenarios.harness import Server
from tests.scenarios.models import write_model

pb = load_service_pb2()

VICTIM = r"""
import ctypes
import re
import signal
import sys


def sockets():
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                yield int(number)
        except OSError:
            pass


def arena():
    # address and size of what this process maps writable and shares
    for line in open("/proc/self/maps"):
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw.s .*(/dev/shm/conch|memfd:conch)", line)
        if found:
            start, end = int(found[1], 16), int(found[2], 16)
            yield start, end - start


class TritonPythonModel:
    def initialize(self, args):
        self.kept = []
        self.runs = json.loads(args["model_config"])["parameters"].get("RUNS", {}).get("string_value")

    def execute(self, requests):
        orders = [
            pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy().reshape(-1)[0].decode()
            for request in requests
        ]
        if self.runs is not None:
            with open(self.runs, "a") as runs:
                runs.write("".join(f"{len(orders)} {order}\n" for order in orders))
        return [self.obey(request, order) for request, order in zip(requests, orders)]

    def obey(self, request, order):
        word, _, argument = order.partition(" ")
        answer = pb_utils.InferenceResponse(
            [pb_utils.Tensor("OUTPUT0", numpy.array([[order.encode()]], dtype=numpy.object_))]
        )
        if word == "sleep":
            time.sleep(float(argument))
        elif word == "wait":
            while not os.path.exists(argument):
                time.sleep(0.005)
        elif word == "large":
            text = numpy.array([[b"0123456789abcdef" * (int(argument) << 16)]], dtype=numpy.object_)
            answer = pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", text)])
        elif word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "segv":
            ctypes.string_at(0)
        elif word == "abort":
            os.abort()
        elif word == "exit":
            sys.exit(int(argument))
        elif word == "os_exit":
            os._exit(int(argument))
        elif word == "raise":
            raise ValueError("told to raise")
        elif word == "spin":
            while True:
                pass
        elif word == "hang":
            ctypes.PyDLL(None).sleep(1_000_000)  # keeps the interpreter's lock
        elif word == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif word == "allocate":
            self.kept.append(b"x" * (int(argument) << 20))
            time.sleep(2)  # before somebody who looks now and then has seen it, nothing is answered
        elif word == "answer_then_kill":
            request.get_response_sender().send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "close_sockets":
            for number in list(sockets()):
                os.close(number)
        elif word == "garbage":
            for number in list(sockets()):
                try:
                    os.write(number, os.urandom(64))
                except OSError:
                    pass
        elif word == "scribble":
            for address, nbytes in list(arena()):
                ctypes.memmove(address, os.urandom(4096) * (nbytes // 4096 + 1), nbytes)
        elif word == "fork_and_kill":
            if os.fork() == 0:
                time.sleep(1000)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "flood":
            for _ in range(int(argument)):
                sys.stdout.write(("x" * 1023 + "\n") * 1024)
        return answer
"""


def write_victim(repository: Path, name: str = "victim", instances: int = 1, **parameters: str) -> None:
    """A model with one string in and out, that does what the string says and answers it: see ``VICTIM``. Requests are
    batched, up to 16. ``parameters`` go into its configuration; ``RUNS`` is a file to which it writes a line for each
    request that it runs: with how many it is run, and what it says."""
    extra = "dynamic_batching { }\n"
    for key, value in parameters.items():
        extra += f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
    write_model(repository, name, VICTIM, "STRING", [1], max_batch_size=16, instances=instances, extra=extra)


def say(server: Server, text: str, model: str = "victim", timeout_s: float = 15.0) -> tuple[int, str]:
    """One request over HTTP: the status, and what was answered, or the error's text."""
    tensor = {"name": "INPUT0", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    body = json.dumps({"inputs": [tensor]}).encode()
    status, answer = server.request("POST", f"/v2/models/{model}/infer", body, timeout_s=timeout_s)
    content = json.loads(answer)
    if status != 200:
        return status, content["error"]
    return status, content["outputs"][0]["data"][0] if content["outputs"] else ""


def say_grpc(server: Server, text: str, model: str = "victim", timeout_s: float = 15.0) -> tuple[str, str]:
    """As ``say`` over gRPC, on a connection of its own: ``OK`` or the name of the error's code."""
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(pack([text.encode()]))
    with grpc.insecure_channel(server.grpc_url, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            answer = pb.ModelInferResponse.FromString(infer(request.SerializeToString(), timeout=timeout_s))
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return "OK", b"".join(answer.raw_output_contents)[4:].decode(errors="replace")
