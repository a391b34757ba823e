"""Streams of models that answer any number of times. What is expected is what Triton 2.51 answered."""

import queue
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from conch.errors import ConchError, NotFound, NotReady
from frontends.grpc.streams import MAX_OUTSTANDING
from frontends.requesting import MAX_WAITING
from tests.frontends.grpc.support import Frontend, pb, set_all, simple_request, typed_request
from tests.frontends.grpc.test_streams import OpenStream, held_request
from tests.frontends.http.support import WINDOW, StubStream

STRICT = (("triton_grpc_error", "true"),)
Steps = list[tuple[int | ConchError | None, bool]]


def decoupled_request(id: str, model: str = "stream", value: int = 7, **parameters: Any) -> Any:
    request = typed_request(model, "INT32", (1,), int_contents=[value])
    request.id = id
    set_all(request.parameters, parameters)
    return request


def response(id: str, value: int, final: bool, model: str = "stream") -> Any:
    found = pb.ModelInferResponse(id=id, model_name=model, model_version="1")
    set_all(found.parameters, {"triton_final_response": final})
    found.outputs.add(name="OUTPUT0", datatype="INT32", shape=[1])
    found.raw_output_contents.append(value.to_bytes(4, "little"))
    return pb.ModelStreamInferResponse(infer_response=found)


def without_outputs(id: str, final: bool, error: str = "", version: str = "") -> Any:
    """An empty final response or an error: the version is what the request said."""
    found = pb.ModelInferResponse(id=id, model_name="stream", model_version=version)
    set_all(found.parameters, {"triton_final_response": final})
    return pb.ModelStreamInferResponse(error_message=error, infer_response=found)


class Talk:
    """A stream to ``frontend``, and what its decoupled requests are answered with."""

    def __init__(self, frontend: Frontend, channel: grpc.Channel, metadata: Any = ()) -> None:
        self.frontend = frontend
        self.stream = OpenStream(channel, metadata)
        self.answer = self.stream.answer
        self.end = self.stream.end
        self.status = self.stream.status

    def send(self, *requests: Any) -> list[StubStream]:
        """Returns when the requester has all of them."""
        requester = self.frontend.requester
        known, before = len(requester.streams), len(requester.submitted)
        self.stream.send(*requests)
        self.frontend.until(lambda: len(requester.submitted) == before + len(requests))
        return requester.streams[known:]

    def respond(self, stream: StubStream, *steps: tuple[int | ConchError | None, bool]) -> None:
        for value, final in steps:
            self.frontend.do(partial(stream.respond, value, final))


@pytest.mark.parametrize(
    ("parameters", "steps", "answers"),
    [
        (
            {},
            [(1, False), (2, False), (3, True)],
            [response("a", 1, False), response("a", 2, False), response("a", 3, True)],
        ),
        ({}, [(1, False), (None, True)], [response("a", 1, False)]),
        ({}, [(None, True)], []),
        ({"triton_enable_empty_final_response": False}, [(None, True)], []),
        ({"triton_enable_empty_final_response": True}, [(None, True)], [without_outputs("a", True)]),
        (
            {"triton_enable_empty_final_response": True, "mine": 5},
            [(1, False), (None, True)],
            [response("a", 1, False), without_outputs("a", True)],
        ),
        ({"triton_enable_empty_final_response": True}, [(1, True)], [response("a", 1, True)]),
        (
            {},
            [(1, False), (NotReady("broken"), False), (2, False), (None, True)],
            [response("a", 1, False), without_outputs("a", False, "broken"), response("a", 2, False)],
        ),
        (
            {},
            [(1, False), (NotFound("gone"), True)],
            [response("a", 1, False), without_outputs("a", True, "gone")],
        ),
    ],
)
def test_responses(frontend: Frontend, parameters: dict[str, Any], steps: Steps, answers: list[Any]) -> None:
    with frontend.connect() as channel:
        talk = Talk(frontend, channel)
        (stream,) = talk.send(decoupled_request("a", **parameters))
        assert "triton_enable_empty_final_response" not in frontend.requester.submitted[-1].parameters
        talk.respond(stream, *steps)
        assert [talk.answer() for _ in answers] == answers
        talk.end()
        assert talk.status() == ("OK", "")


def test_the_version_of_an_empty_response(frontend: Frontend) -> None:
    request = decoupled_request("a", triton_enable_empty_final_response=True)
    request.model_version = "1"
    with frontend.connect() as channel:
        talk = Talk(frontend, channel)
        (stream,) = talk.send(request)
        talk.respond(stream, (None, True))
        assert talk.answer() == without_outputs("a", True, version="1")
        talk.end()
        assert talk.status() == ("OK", "")


def test_responses_of_several_requests_are_interleaved(frontend: Frontend) -> None:
    with frontend.connect() as channel:
        talk = Talk(frontend, channel)
        streams = talk.send(*(decoupled_request(str(i)) for i in range(3)))
        for value in range(4):
            for i in (2, 0, 1):
                talk.respond(streams[i], (value, value == 3))
        talk.end()
        expected = [response(str(i), value, value == 3) for value in range(4) for i in (2, 0, 1)]
        assert [talk.answer() for _ in expected] == expected
        assert talk.status() == ("OK", "")


def test_ordinary_answers_keep_their_order_beside_them(frontend: Frontend) -> None:
    """They wait for ordinary ones before them, not for decoupled ones, and nothing waits for them. A decoupled
    request that is refused is answered at once, a model that there is not in the order of ordinary ones."""
    with frontend.connect() as channel:
        talk = Talk(frontend, channel)
        invalid = decoupled_request("invalid")
        invalid.inputs[0].shape[0] = 2
        (stream,) = talk.send(held_request("slow"), decoupled_request("decoupled"), simple_request(id="quick"))
        talk.stream.send(simple_request("nope", id="unknown"), invalid)
        answer = talk.answer()
        assert answer.infer_response == pb.ModelInferResponse(id="invalid") and answer.error_message
        talk.respond(stream, (1, False))
        assert talk.answer() == response("decoupled", 1, False)
        frontend.do(frontend.requester.finish_held)
        assert [talk.answer().infer_response.id for _ in range(3)] == ["slow", "quick", "unknown"]
        talk.end()
        talk.respond(stream, (2, True))
        assert talk.answer() == response("decoupled", 2, True)
        assert talk.status() == ("OK", "")


def test_a_parameter_of_the_wrong_type(frontend: Frontend) -> None:
    (answer,) = frontend.stream([decoupled_request("a", triton_enable_empty_final_response=5)])
    text = "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param."
    assert answer == pb.ModelStreamInferResponse(error_message=text, infer_response=pb.ModelInferResponse(id="a"))


def test_strict_mode(frontend: Frontend) -> None:
    """What came before the error is written; the other requests are cancelled."""
    before = frontend.requester.cancelled
    with frontend.connect() as channel:
        talk = Talk(frontend, channel, STRICT)
        first, other = talk.send(decoupled_request("a"), decoupled_request("b"))
        talk.respond(first, (1, False), (NotReady("broken"), False))
        assert talk.answer() == response("a", 1, False)
        assert talk.status() == ("UNAVAILABLE", "broken")
    frontend.until(lambda: frontend.requester.cancelled == before + 2)
    assert not first.open and not other.open


def test_many_responses_in_order(frontend: Frontend) -> None:
    answers = frontend.stream([decoupled_request(str(i), "count", 2000) for i in range(3)])
    for i in range(3):
        own = [answer.infer_response for answer in answers if answer.infer_response.id == str(i)]
        assert [int.from_bytes(answer.raw_output_contents[0], "little") for answer in own] == list(range(1, 2001))


def test_half_close_waits_for_the_last_response(frontend: Frontend) -> None:
    with frontend.connect() as channel:
        talk = Talk(frontend, channel)
        (stream,) = talk.send(decoupled_request("a"))
        talk.end()
        talk.respond(stream, (1, False))
        assert talk.answer() == response("a", 1, False)
        talk.respond(stream, (None, True))
        assert talk.status() == ("OK", "")


def test_a_client_that_does_not_read(frontend: Frontend) -> None:
    """What it does not read stays with the worker, and another stream goes on; once it reads, it gets all of it."""
    responses, nbytes = 400, 200_000
    with frontend.connect() as channel, frontend.connect() as other_channel:
        talk, other = Talk(frontend, channel), Talk(frontend, other_channel)
        (stream,) = talk.send(decoupled_request("slow"))

        def fill() -> None:
            while stream.open and stream.unread < WINDOW and stream.sent < responses:
                stream.sent += 1
                stream.respond(stream.sent, stream.sent == responses, nbytes)

        # the client, its windows and the transports take some
        before = -1
        while stream.sent != before:
            before = stream.sent
            frontend.do(fill)
            for _ in range(10):
                (quick,) = other.send(decoupled_request("quick"))
                other.respond(quick, (5, True))
                assert other.answer() == response("quick", 5, True)
        assert stream.sent < responses and stream.unread == WINDOW
        talk.end()
        for value in range(1, responses + 1):
            answer = talk.answer().infer_response
            assert int.from_bytes(answer.raw_output_contents[0], "little") == value
            frontend.do(fill)
        assert talk.status() == ("OK", "")
        other.end()
        assert other.status() == ("OK", "")


def test_cancelling_a_stream_gives_everything_back(frontend: Frontend) -> None:
    before = frontend.requester.cancelled
    with frontend.connect() as channel:
        talk = Talk(frontend, channel)
        streams = talk.send(*(decoupled_request(str(i)) for i in range(5)))
        for stream in streams:
            for _ in range(WINDOW):
                frontend.do(partial(stream.respond, 1, False, 20_000))
        talk.stream.call.cancel()
        frontend.until(lambda: frontend.requester.cancelled == before + 5)
        frontend.until(lambda: not any(stream.unread for stream in streams))
        talk.end()
    frontend.until(lambda: frontend.application.traffic.count == 0)


def test_requests_whose_responses_are_not_read_are_not_many(frontend: Frontend) -> None:
    """A request counts until its last response is taken."""
    requests, nbytes = 1500, 100_000
    requester = frontend.requester
    with frontend.connect() as channel, frontend.connect() as other_channel:
        talk, other = Talk(frontend, channel), Talk(frontend, other_channel)
        known = len(requester.streams)
        talk.stream.send(*(decoupled_request("slow") for _ in range(requests)))
        talk.end()

        def open_streams(id: str) -> list[StubStream]:
            return [stream for stream in requester.streams[known:] if stream.open and stream.client_id == id]

        def respond_to_all() -> int:
            slow = open_streams("slow")
            for stream in slow:
                stream.respond(1, True, nbytes)
            return len(slow)

        # the client, its windows and the transports take some
        responded = before = 0
        while responded == 0 or responded != before:
            before = responded
            for _ in range(10):
                other.stream.send(decoupled_request("quick"))
                frontend.until(lambda: bool(open_streams("quick")))
                other.respond(open_streams("quick")[0], (5, True))
                other.answer()
                responded += frontend.do(respond_to_all)
        assert MAX_OUTSTANDING <= responded < requests
        for _ in range(requests):
            talk.answer()
            responded += frontend.do(respond_to_all)
        assert responded == requests
        assert talk.status() == ("OK", "")
        other.end()


def test_errors_that_nobody_reads(frontend: Frontend) -> None:
    """No window holds them back, so the request ends, and the others go on."""
    with frontend.connect() as channel:
        talk = Talk(frontend, channel)
        stream, other = talk.send(decoupled_request("a"), decoupled_request("b"))

        def fail() -> int:
            errors = 0
            while stream.open:
                stream.respond(NotFound("gone"))
                errors += 1
            return errors

        assert frontend.do(fail) == MAX_WAITING + 1
        assert [talk.answer() for _ in range(MAX_WAITING)] == [without_outputs("a", False, "gone")] * MAX_WAITING
        last = talk.answer()
        assert "faster than the client reads" in last.error_message
        assert last.infer_response.parameters["triton_final_response"].bool_param
        talk.respond(other, (1, True))
        talk.end()
        assert talk.answer() == response("b", 1, True)
        assert talk.status() == ("OK", "")


def test_the_client_library(frontend: Frontend) -> None:
    results: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(frontend.url) as client:
        client.start_stream(lambda result, error: results.put(error or result))
        tensor = triton.InferInput("INPUT0", [1], "INT32")
        tensor.set_data_from_numpy(np.array([50], np.int32))
        client.async_stream_infer("count", [tensor], request_id="1000_3", enable_empty_final_response=True)
        for value in range(1, 51):
            result = results.get(timeout=10)
            assert result.as_numpy("OUTPUT0").tolist() == [value]
            assert result.get_response().id == "1000_3"
            assert not result.get_response().parameters["triton_final_response"].bool_param
        last = results.get(timeout=10).get_response()
        assert last.parameters["triton_final_response"].bool_param and not last.outputs
        client.stop_stream()
