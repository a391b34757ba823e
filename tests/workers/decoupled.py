"""Python models that answer with response senders, and what they are asked with."""

from typing import Any

from conch.messages import (
    Closed,
    Request,
    Response,
    Window,
)
from tests.workers.harness import Stage, ints

HEAD = """
import asyncio
import os
import threading
import time
import numpy as np
import triton_python_backend_utils as pb_utils
from triton_python_backend_utils import InferenceResponse, Tensor, TritonError

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

def values(request):
    return pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0].tolist()

def answer(*numbers):
    return InferenceResponse([Tensor("OUT", np.array([numbers], np.int32))])

def mark(name):
    open(os.path.join(os.path.dirname(__file__), name), "w").close()

def wait_for(name):
    while not os.path.exists(os.path.join(os.path.dirname(__file__), name)):
        time.sleep(0.002)

class TritonPythonModel:
"""
#: as many responses as the first value says, in a thread for each request
REPEAT = (
    HEAD
    + """
    def initialize(self, args):
        self.threads = []

    def execute(self, requests):
        for request in requests:
            thread = threading.Thread(target=self.repeat, args=(values(request)[0], request.get_response_sender()))
            thread.start()
            self.threads.append(thread)

    def repeat(self, count, sender):
        for number in range(count):
            sender.send(answer(number))
            if sender.is_cancelled():
                mark("cancelled")
        sender.send(flags=FINAL)

    def finalize(self):
        for thread in self.threads:
            thread.join()
        mark("finalized")
"""
)
DECOUPLED: dict[str, Any] = {"model_transaction_policy": {"decoupled": True}}


def body(text: str) -> str:
    """A model with this ``execute``."""
    lines = "\n".join("        " + line for line in text.strip().splitlines())
    return f"{HEAD}\n    def execute(self, requests):\n{lines}\n"


def ready(stage: Stage, code: str, name: str = "stream", **config: Any) -> str:
    return stage.ready(stage.model(name, code, DECOUPLED | config))


def request(stage: Stage, *numbers: int, model: str = "stream", **options: Any) -> Request:
    return stage.requester.request(model, stage.requester.put("IN", ints(*numbers)), **options)


def responses(stage: Stage, worker: str, *requests: Request) -> dict[int, list[Response]]:
    """All of these, to their final ones. What has been read is told to the worker."""
    found: dict[int, list[Response]] = {each.id: [] for each in requests}
    while not all(each and each[-1].final for each in found.values()):
        response = stage.requester.response(worker)
        found[response.id].append(response)
        assert response.index == len(found[response.id]) - 1
        if not response.final:
            stage.requester.links[worker].send_nowait(Window(response.id, 1))
    return found


def numbers(stage: Stage, found: list[Response]) -> list[list[int]]:
    return [stage.requester.outputs(each)["OUT"][0].tolist() for each in found if each.outputs]


def errors(found: list[Response]) -> list[str]:
    return [each.error.message for each in found if each.error is not None]


def closed(stage: Stage, *requests: Request) -> dict[int, Closed]:
    found = [stage.broker.expect(Closed) for _ in requests]
    assert {each.id for each in found} == {each.id for each in requests}
    return {each.id: each for each in found}
