"""Message sizes, what clients get to hear about connections, and requests that a machine made up."""

import grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conch.settings import Settings
from frontends.grpc.engines.aio import options
from tests.frontends.grpc.support import EngineName, Frontend, Refused, add_input, pb, refusal, simple_request, sums

GOOD = simple_request(id="id").SerializeToString()
UNARY = ("ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "LogSettings", "TraceSetting")


def test_messages_that_are_too_large(engine: EngineName) -> None:
    with Frontend(engine, frontend_arena_nbytes=1 << 20) as frontend:
        request = pb.ModelInferRequest(model_name="echo_uint8", raw_input_contents=[bytes(2 << 20)])
        add_input(request, "INPUT0", (2 << 20,), "UINT8")
        assert refusal(frontend.call, "ModelInfer", request)[0] == "RESOURCE_EXHAUSTED"
        assert frontend.stream([request])[0][0] == "RESOURCE_EXHAUSTED"
        assert sums(frontend.call("ModelInfer", simple_request()))


def test_options() -> None:
    assert dict(
        options(
            Settings(
                grpc_keepalive_time=1,
                grpc_keepalive_timeout=2,
                grpc_keepalive_permit_without_calls=True,
                grpc_http2_max_pings_without_data=3,
                grpc_http2_min_recv_ping_interval_without_data=4,
                grpc_http2_max_ping_strikes=5,
                grpc_max_connection_age=6,
                grpc_max_connection_age_grace=7,
            )
        )
    ).items() >= {
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", 2**31 - 1),
        ("grpc.max_send_message_length", 2**31 - 1),
        ("grpc.keepalive_time_ms", 1),
        ("grpc.keepalive_timeout_ms", 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 3),
        ("grpc.http2.min_ping_interval_without_data_ms", 4),
        ("grpc.http2.max_ping_strikes", 5),
        ("grpc.max_connection_age_ms", 6),
        ("grpc.max_connection_age_grace_ms", 7),
    }


def test_old_connections_are_closed(engine: EngineName) -> None:
    """The client makes a new one, and notices nothing."""
    with Frontend(engine, grpc_max_connection_age=100, grpc_max_connection_age_grace=100) as frontend:
        states: list[grpc.ChannelConnectivity] = []
        with frontend.connect() as channel:
            channel.subscribe(states.append)
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            call(GOOD, timeout=10)
            while grpc.ChannelConnectivity.IDLE not in states[1:]:
                frontend.call("ServerLive")
            call(GOOD, timeout=10)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=12), st.integers(0, 8), st.sampled_from(UNARY))
def test_damaged_requests(frontend: Frontend, position: int, inserted: bytes, removed: int, method: str) -> None:
    """Whatever comes is answered, and never with an error of ours."""
    payload = GOOD[:position] + inserted + GOOD[position + removed :]
    frontend.requester.answers = [[]] if method == "ModelStatistics" else []
    try:
        frontend.raw(method, payload)
    except Refused as refused:
        code, text = refused.args
        assert code in ("INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"), text
        assert code != "INTERNAL" or text == "Unable to parse request"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=12), st.integers(0, 8))
def test_damaged_requests_on_streams(frontend: Frontend, position: int, inserted: bytes, removed: int) -> None:
    first, *rest = frontend.stream([GOOD, GOOD[:position] + inserted + GOOD[position + removed :], GOOD])
    assert first.infer_response.id == "id"
    assert rest[-1] == ("INTERNAL", "Unable to parse request") or rest[-1].infer_response.id == "id"
