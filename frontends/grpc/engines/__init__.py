"""Engines: what speaks HTTP/2 and gRPC for the application. Their modules import gRPC, so they are imported late."""

import logging

from conch.errors import InvalidArgument
from conch.settings import Settings
from frontends.grpc.exchange import Application, Engine

logger = logging.getLogger("conch.frontends.grpc.engines")


def make_engine(application: Application, settings: Settings) -> Engine:
    """The engine that ``--grpc-engine`` names; with ``auto`` the faster one where it is installed and can do what the
    settings ask for. Raises ``InvalidArgument``."""
    if settings.grpc_engine != "aio":
        try:
            from frontends.grpc.engines.native import NativeEngine, what_is_missing
        except ImportError as error:
            missing = f"a package that is not installed ({error.name}); try: pip install 'conch[fast-grpc]'"
        else:
            missing = what_is_missing(settings)
            if not missing:
                return NativeEngine(application, settings)
        if settings.grpc_engine == "native":
            raise InvalidArgument(f"--grpc-engine=native lacks {missing}")
        logger.debug("the native gRPC engine is not used: it lacks %s", missing)
    from frontends.grpc.engines.aio import AioEngine

    return AioEngine(application, settings)
