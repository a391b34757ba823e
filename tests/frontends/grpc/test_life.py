"""Cancellation, deadlines and the server's stop."""

import socket
import threading
from functools import partial

import grpc
import pytest

from frontends.grpc.engines.aio import AioEngine
from tests.frontends.grpc.http2 import HEADERS, PREFACE, frame, literal, message
from tests.frontends.grpc.support import (
    ADDRESS,
    SERVICE,
    EngineName,
    Frontend,
    refusal,
    simple_request,
    typed_request,
)

HELD = typed_request("held", "INT32", (1,), int_contents=[1]).SerializeToString()
SHUTTING_DOWN = ("UNAVAILABLE", "GRPC server is shutting down and has stopped accepting new requests.")


def test_cancelling_an_rpc_cancels_the_request(frontend: Frontend) -> None:
    before = frontend.requester.cancelled
    with frontend.connect() as channel:
        call = channel.unary_unary(SERVICE + "ModelInfer").future(HELD)
        frontend.until(lambda: len(frontend.requester.held) == 1)
        call.cancel()
        frontend.until(lambda: frontend.requester.cancelled == before + 1)
    frontend.requester.held.clear()
    frontend.until(lambda: frontend.application.traffic.count == 0)


def test_a_lost_connection_cancels_the_request(frontend: Frontend) -> None:
    before = frontend.requester.cancelled
    with frontend.connect() as channel:
        call = channel.unary_unary(SERVICE + "ModelInfer").future(HELD)
        frontend.until(lambda: len(frontend.requester.held) == 1)
    assert call.done()
    frontend.until(lambda: frontend.requester.cancelled == before + 1)
    frontend.requester.held.clear()


def test_a_passed_deadline_cancels_the_request(frontend: Frontend) -> None:
    before = frontend.requester.cancelled
    with frontend.connect() as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(SERVICE + "ModelInfer")(HELD, timeout=0.2)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    frontend.until(lambda: frontend.requester.cancelled == before + 1)
    frontend.requester.held.clear()


def test_stop_answers_what_is_in_flight_and_refuses_the_rest(engine: EngineName) -> None:
    with Frontend(engine) as frontend, frontend.connect() as channel:
        call = channel.unary_unary(SERVICE + "ModelInfer").future(HELD, timeout=10)
        frontend.until(lambda: len(frontend.requester.held) == 1)
        finished: list[bool] = []
        drainer = threading.Thread(target=lambda: finished.append(frontend.drain(5)))
        drainer.start()
        frontend.until(frontend.application.traffic.stopped.is_set)
        assert refusal(frontend.call, "ModelInfer", simple_request()) == SHUTTING_DOWN
        assert frontend.call("ServerLive").live
        frontend.do(frontend.requester.finish_held)
        assert call.result()
        drainer.join(10)
        assert finished == [True]


def _replaced(frontend: Frontend, times: int) -> bool:
    return not isinstance(frontend.engine, AioEngine) or frontend.engine.replaced == times


def test_a_method_that_is_no_text_hurts_nobody_for_long(engine: EngineName) -> None:
    """It ends ``grpc.aio``'s server; what is in flight goes on, and another server takes over."""
    headers = HEADERS.replace(literal(b":path", b"/test.Echo/Say"), literal(b":path", b"/\xff"))
    with Frontend(engine) as frontend, frontend.connect() as channel:
        call = channel.unary_unary(SERVICE + "ModelInfer")
        held = call.future(HELD, timeout=10)
        frontend.until(lambda: len(frontend.requester.held) == 1)
        for i in range(3):
            with socket.create_connection((ADDRESS, frontend.port), timeout=10) as connection:
                connection.sendall(PREFACE + frame(1, 4, 1, headers) + message(1, b"x"))
                frontend.until(partial(_replaced, frontend, i + 1))
            assert call(simple_request().SerializeToString(), timeout=10, wait_for_ready=True)
        frontend.do(frontend.requester.finish_held)
        assert held.result()


@pytest.mark.parametrize("hurry", [False, True])
def test_what_takes_too_long_is_cut_off(engine: EngineName, hurry: bool) -> None:
    with Frontend(engine) as frontend, frontend.connect() as channel:
        call = channel.unary_unary(SERVICE + "ModelInfer").future(HELD, timeout=10)
        frontend.until(lambda: len(frontend.requester.held) == 1)
        assert not frontend.drain(0.05 if not hurry else 30, hurry)
        with pytest.raises(grpc.RpcError):
            call.result()
        frontend.until(lambda: frontend.requester.cancelled == 1)
