"""Every RPC is there, in one group of restrictions, and behind the one chokepoint."""

import pytest

from conch.categories import Category
from conch.errors import InvalidArgument
from conch.settings import Settings
from frontends.grpc.application import GrpcApplication
from frontends.grpc.health import CHECK
from tests.frontends.fakes import on_uvloop
from tests.frontends.grpc.support import SERVICE, EngineName, Frontend, pb, refusal, simple_request
from tests.frontends.http.support import StubRequester

RPCS = {SERVICE + method.name: method for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
STREAMS = {path for path, method in RPCS.items() if method.client_streaming}
UNARY = {*RPCS, CHECK} - STREAMS
RESTRICTED = (
    "UNAVAILABLE",
    "This protocol is restricted, expecting header 'triton-grpc-protocol-secret'",
)
ALL_RESTRICTED = (",".join(category.value for category in Category) + ":secret=open",)


@on_uvloop
async def test_all_rpcs_of_the_service_are_there() -> None:
    application = GrpcApplication(StubRequester(), Settings())
    assert set(application.methods) == UNARY
    assert set(application.streams) == STREAMS


@on_uvloop
async def test_settings_that_cannot_be_understood() -> None:
    with pytest.raises(InvalidArgument, match="unknown restricted protocol 'nope'"):
        GrpcApplication(StubRequester(), Settings(grpc_restricted_protocol=("nope:a=b",)))
    with pytest.raises(InvalidArgument, match="is not a regular expression"):
        GrpcApplication(StubRequester(), Settings(grpc_header_forward_pattern="("))


def test_with_everything_restricted_every_rpc_refuses(engine: EngineName) -> None:
    with Frontend(engine, grpc_restricted_protocol=ALL_RESTRICTED) as frontend:
        for path in UNARY:
            assert refusal(frontend.raw, path, b"") == RESTRICTED, path
            assert refusal(frontend.raw, path, b"", (("triton-grpc-protocol-secret", "wrong"),)) == RESTRICTED, path
        assert frontend.stream([simple_request()]) == [RESTRICTED]
        assert not frontend.requester.submitted
        assert not frontend.requester.messages


def test_the_right_header_opens_restricted_rpcs(engine: EngineName) -> None:
    with Frontend(engine, grpc_restricted_protocol=ALL_RESTRICTED) as frontend:
        metadata = (("triton-grpc-protocol-secret", "open"),)
        assert frontend.call("ServerLive", metadata=metadata).live
        assert frontend.call("ModelInfer", simple_request(), metadata).model_name == "simple"
        assert [answer.error_message for answer in frontend.stream([simple_request()], metadata)] == [""]


def test_a_group_is_restricted_alone(engine: EngineName) -> None:
    with Frontend(engine, grpc_restricted_protocol=("health,inference:secret=open",)) as frontend:
        for path in ("ServerLive", "ServerReady", "ModelReady", "ModelInfer", CHECK):
            assert refusal(frontend.raw, path, b"") == RESTRICTED
        assert frontend.call("ServerMetadata").name == "triton"


def test_unknown_methods(frontend: Frontend) -> None:
    for path in (SERVICE + "Nothing", "/other.Service/ModelInfer", "/grpc.health.v1.Health/Watch"):
        assert refusal(frontend.raw, path, b"")[0] == "UNIMPLEMENTED"


def test_what_is_no_message(frontend: Frontend) -> None:
    for path in UNARY - {CHECK}:
        assert refusal(frontend.raw, path, b"\xff\xff\xff") == ("INTERNAL", "Unable to parse request"), path
