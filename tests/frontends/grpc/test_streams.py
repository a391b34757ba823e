"""ModelStreamInfer: order, errors, ends."""

import queue
import time
from collections.abc import Iterator
from typing import Any

import grpc

from conch.errors import Internal, NotReady
from conch.tensors import pack
from frontends.grpc.streams import MAX_HELD_NBYTES, MAX_OUTSTANDING
from tests.frontends.grpc.support import (
    SERVICE,
    TIMEOUT_S,
    EngineName,
    Frontend,
    add_input,
    pb,
    set_all,
    simple_request,
    sums,
    typed_request,
)

SHUTTING_DOWN = "GRPC server is shutting down and has stopped accepting new requests."


def held_request(id: str) -> Any:
    request = typed_request("held", "INT32", (1,), int_contents=[1])
    request.id = id
    return request


def failing_request(id: str) -> Any:
    request = pb.ModelInferRequest(model_name="failing", id=id, raw_input_contents=[pack([b"what"])])
    add_input(request, "INPUT0", (1,), "BYTES")
    return request


class OpenStream:
    """A stream whose requests are sent one by one."""

    def __init__(self, channel: grpc.Channel, metadata: Any = ()) -> None:
        self._requests: queue.Queue[Any] = queue.Queue()
        self.call = channel.stream_stream(SERVICE + "ModelStreamInfer")(
            iter(self._requests.get, None), timeout=TIMEOUT_S, metadata=metadata
        )
        self._answers: Iterator[bytes] = iter(self.call)

    def send(self, *requests: Any) -> None:
        for request in requests:
            self._requests.put(request if isinstance(request, bytes) else request.SerializeToString())

    def end(self) -> None:
        self._requests.put(None)

    def answer(self) -> Any:
        return pb.ModelStreamInferResponse.FromString(next(self._answers))

    def status(self) -> tuple[str, str]:
        """Ends the test's side."""
        try:
            rest = list(self._answers)
        except grpc.RpcError:
            rest = []
        assert not rest
        self.end()
        return self.call.code().name, self.call.details()


def test_requests_of_a_stream(frontend: Frontend) -> None:
    answers = frontend.stream(simple_request(id=str(i)) for i in range(300))
    assert [answer.infer_response.id for answer in answers] == [str(i) for i in range(300)]
    for answer in answers:
        assert not answer.error_message
        assert sums(answer.infer_response)[0] == list(range(1, 17))
        assert answer.infer_response.parameters["triton_final_response"].bool_param is True


def test_a_stream_without_requests(frontend: Frontend) -> None:
    assert frontend.stream([]) == []


def test_large_tensors(frontend: Frontend) -> None:
    data = bytes(range(256)) * 8192
    request = pb.ModelInferRequest(model_name="echo_uint8", raw_input_contents=[data])
    add_input(request, "INPUT0", (len(data),), "UINT8")
    answers = frontend.stream([request] * 3)
    assert [answer.infer_response.raw_output_contents[0] == data for answer in answers] == [True] * 3


def test_errors_are_answers(frontend: Frontend) -> None:
    """What never ran is answered with the id alone; what failed while it ran also with the model and the final flag."""
    frontend.requester.errors["what"] = Internal("broken")
    short = simple_request(id="3")
    short.inputs[0].shape[1] = 15
    requests = [
        simple_request(id="1"),
        simple_request("nope", id="2"),
        short,
        failing_request("4"),
        simple_request(id="6"),
    ]
    first, unknown, invalid, failed, last = frontend.stream(requests)
    assert (first.infer_response.id, last.infer_response.id) == ("1", "6")
    assert unknown == pb.ModelStreamInferResponse(
        error_message="Request for unknown model: 'nope' is not found",
        infer_response=pb.ModelInferResponse(id="2"),
    )
    assert invalid.error_message.startswith("[request id: 3] unexpected shape for input 'INPUT0' for model 'simple'")
    assert invalid.infer_response == pb.ModelInferResponse(id="3")
    expected = pb.ModelInferResponse(id="4", model_name="failing")
    set_all(expected.parameters, {"triton_final_response": True})
    assert failed == pb.ModelStreamInferResponse(error_message="broken", infer_response=expected)


def test_long_errors_are_whole(frontend: Frontend) -> None:
    frontend.requester.errors["what"] = Internal("x" * 100_000)
    (answer,) = frontend.stream([failing_request("1")])
    assert answer.error_message == "x" * 100_000


def test_strict_mode_ends_with_the_first_failure(frontend: Frontend) -> None:
    frontend.requester.errors["what"] = NotReady("not now")
    requests = [simple_request(id="1"), simple_request("nope", id="2"), failing_request("3"), simple_request(id="4")]
    *answers, status = frontend.stream(requests, (("triton_grpc_error", "true"),))
    assert [answer.infer_response.id for answer in answers] == ["1", "2"]
    assert answers[1].error_message
    assert status == ("UNAVAILABLE", "not now")


def test_what_is_no_request_ends_the_stream(frontend: Frontend) -> None:
    """After the answers to what came before."""
    first, status = frontend.stream([simple_request(id="1"), b"\xff\xff", simple_request(id="3")])
    assert first.infer_response.id == "1"
    assert status == ("INTERNAL", "Unable to parse request")


def test_answers_keep_the_order_of_requests(frontend: Frontend) -> None:
    """A quick one waits for the slow one before it, and both run at once."""
    with frontend.connect() as channel:
        stream = OpenStream(channel)
        before = len(frontend.requester.submitted)
        stream.send(held_request("slow"), simple_request(id="quick"))
        frontend.until(lambda: len(frontend.requester.submitted) == before + 2)
        frontend.do(frontend.requester.finish_held)
        assert [stream.answer().infer_response.id for _ in range(2)] == ["slow", "quick"]
        stream.end()
        assert stream.status() == ("OK", "")


def test_half_close_waits_for_the_answers(frontend: Frontend) -> None:
    with frontend.connect() as channel:
        stream = OpenStream(channel)
        stream.send(held_request("1"))
        stream.end()
        frontend.until(lambda: len(frontend.requester.held) == 1)
        frontend.do(frontend.requester.finish_held)
        assert stream.answer().infer_response.id == "1"
        assert stream.status() == ("OK", "")


def test_cancelling_a_stream_cancels_its_requests(frontend: Frontend) -> None:
    before = frontend.requester.cancelled
    with frontend.connect() as channel:
        stream = OpenStream(channel)
        stream.send(*(held_request(str(i)) for i in range(5)))
        frontend.until(lambda: len(frontend.requester.held) == 5)
        stream.call.cancel()
        frontend.until(lambda: frontend.requester.cancelled == before + 5)
        stream.end()
    frontend.requester.held.clear()
    frontend.until(lambda: frontend.application.traffic.count == 0)


def test_a_stream_is_not_read_far_ahead(frontend: Frontend) -> None:
    before = len(frontend.requester.submitted)
    with frontend.connect() as channel:
        stream = OpenStream(channel)
        stream.send(*(held_request(str(i)) for i in range(MAX_OUTSTANDING + 20)))
        frontend.until(lambda: len(frontend.requester.submitted) == before + MAX_OUTSTANDING)
        stream.end()
        while len(frontend.requester.submitted) < before + MAX_OUTSTANDING + 20:
            assert len(frontend.requester.held) <= MAX_OUTSTANDING
            frontend.do(frontend.requester.finish_held)
        frontend.do(frontend.requester.finish_held)
        answers = [stream.answer().infer_response.id for _ in range(MAX_OUTSTANDING + 20)]
        assert answers == [str(i) for i in range(MAX_OUTSTANDING + 20)]
        assert stream.status() == ("OK", "")


def test_a_client_that_does_not_read(frontend: Frontend) -> None:
    """Its requests are not taken up while so many bytes of answers wait for it."""
    data = bytes(8 << 20)
    request = pb.ModelInferRequest(model_name="echo_uint8", raw_input_contents=[data])
    add_input(request, "INPUT0", (len(data),), "UINT8")
    held = typed_request("held", "INT32", (1,), int_contents=[1])
    before = len(frontend.requester.submitted)
    with frontend.connect() as channel:
        stream = OpenStream(channel)
        stream.send(held, *[request] * 30)
        stream.end()
        frontend.until(lambda: len(frontend.requester.submitted) > before + MAX_HELD_NBYTES // len(data))
        time.sleep(0.1)  # nothing more happens
        assert len(frontend.requester.submitted) <= before + 2 + MAX_HELD_NBYTES // len(data)
        frontend.do(frontend.requester.finish_held)
        stream.answer()
        assert [len(stream.answer().infer_response.raw_output_contents[0]) for _ in range(30)] == [len(data)] * 30
        assert stream.status() == ("OK", "")


def test_streams_at_shut_down(engine: EngineName) -> None:
    """What is on its way is answered, what is new is refused, and then the stream ends."""
    with Frontend(engine) as frontend, frontend.connect() as channel, frontend.connect() as idle_channel:
        stream, idle = OpenStream(channel), OpenStream(idle_channel)
        idle.send(simple_request())
        assert not idle.answer().error_message
        stream.send(held_request("1"))
        frontend.until(lambda: len(frontend.requester.held) == 1)
        frontend.do(frontend.application.traffic.stopped.set)
        assert idle.status() == ("UNAVAILABLE", SHUTTING_DOWN)
        stream.send(simple_request(id="2"))
        stream.send(simple_request(id="3"))
        frontend.do(frontend.requester.finish_held)
        assert stream.answer().infer_response.id == "1"
        code, text = "", ""
        try:
            while True:
                assert stream.answer().error_message == SHUTTING_DOWN
        except grpc.RpcError as error:
            code, text = error.code().name, error.details()
        stream.end()
        assert (code, text) == ("UNAVAILABLE", SHUTTING_DOWN)
        assert frontend.drain(5)
