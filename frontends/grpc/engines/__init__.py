"""Engines: what speaks HTTP/2 and gRPC for the application. One of them imports grpcio, so they are imported late."""

from conch.settings import Settings
from frontends.grpc.exchange import Application, Engine


def make_engine(application: Application, settings: Settings) -> Engine:
    """The engine that ``--grpc-engine`` names. Raises ``InvalidArgument``."""
    if settings.grpc_engine == "aio":
        from frontends.grpc.engines.aio import AioEngine

        return AioEngine(application, settings)
    from frontends.grpc.engines.http2 import Http2Engine

    return Http2Engine(application, settings)
