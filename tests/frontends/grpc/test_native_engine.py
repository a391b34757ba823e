import grpc
import pytest

from conch.errors import InvalidArgument
from conch.settings import Settings
from frontends.grpc.engines import make_engine
from frontends.grpc.engines.aio import AioEngine
from tests.frontends.grpc.echo import Echo, Serving

native = pytest.importorskip("frontends.grpc.engines.native", reason="pygrpc-native is not installed")

BEYOND = {
    "grpc_infer_response_compression_level": "low",
    "grpc_max_connection_age": 1000,
    "grpc_max_connection_age_grace": 1000,
    "grpc_http2_max_pings_without_data": 5,
    "grpc_http2_min_recv_ping_interval_without_data": 1000,
    "grpc_http2_max_ping_strikes": 0,
}


def settings(engine: str, **changed: object) -> Settings:
    return Settings(grpc_engine=engine, **changed)  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_auto_takes_the_native_engine() -> None:
    engine = make_engine(Echo(), settings("auto"))
    assert isinstance(engine, native.NativeEngine)
    await engine.close(0)


@pytest.mark.asyncio
@pytest.mark.parametrize("field", BEYOND)
async def test_what_it_cannot_do(field: str) -> None:
    flag = "--" + field.replace("_", "-")
    assert native.what_is_missing(settings("auto", **{field: BEYOND[field]})) == f"what {flag} asks for"
    with pytest.raises(InvalidArgument, match=flag):
        make_engine(Echo(), settings("native", **{field: BEYOND[field]}))
    engine = make_engine(Echo(), settings("auto", **{field: BEYOND[field]}))
    assert isinstance(engine, AioEngine)
    await engine.close(0)


def test_it_has_no_tls() -> None:
    assert "--grpc-use-ssl" in native.what_is_missing(settings("auto", grpc_use_ssl=True))


@pytest.mark.asyncio
async def test_deflate_is_refused_and_the_text_says_so() -> None:
    async with Serving("native") as serving:
        code, text = await serving.ask("Say", b"x", compression=grpc.Compression.Deflate)
        assert code == "UNIMPLEMENTED"
        assert "deflate" in str(text)
