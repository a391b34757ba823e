"""The gRPC frontend process: wiring, start and stop."""

import asyncio
import logging

from conch.process import keep_what_is_there
from conch.requester.requester import Requester
from conch.run_dir import RunDir
from conch.settings import Settings
from frontends.grpc.calls import Traffic
from frontends.grpc.exchange import Engine
from frontends.listening import bind
from frontends.running import Life, first, run

logger = logging.getLogger("conch.frontends.grpc.server")

#: for replies that are there to reach their clients
_WRITE_GRACE_S = 1.0


async def serve(settings: Settings) -> bool:
    """Runs until SIGTERM or SIGINT, step by step as ``Life`` has it. Returns whether everything in flight was answered
    within ``exit_timeout_secs`` of the drain.

    Clients can connect once the models to be loaded at start have been, one way or the other. Raises ``ConchError``.
    """
    reuse_port = settings.reuse_grpc_port or settings.grpc_process_count > 1
    # gRPC itself would share the port with another server without a word
    listener = bind(settings.grpc_address, settings.grpc_port, reuse_port)
    life = Life()
    life.follow_signals(asyncio.get_running_loop())
    requester = Requester(
        RunDir(settings.run_dir),
        role="grpc",
        arena_cap_nbytes=settings.frontend_arena_nbytes,
        max_inflight=settings.max_inflight,
    )
    requester.on_table = life.look_at
    await requester.start()
    try:
        # protobuf and gRPC take 60 ms to import; models are being loaded meanwhile
        from frontends.grpc.application import GrpcApplication
        from frontends.grpc.engines import make_engine

        application = GrpcApplication(requester, settings)
        engine = make_engine(application, settings)
        await first(life.loaded, life.leaving)
        if life.leaving.is_set():
            await engine.close(0)
            return True
        await engine.listen(listener)
        logger.info("Started GRPCInferenceService at %s:%s", settings.grpc_address, settings.grpc_port)
        keep_what_is_there()
        await life.leaving.wait()
        application.traffic.leaving = True
        logger.info("not ready any more")
        await life.serve_on(settings.drain_delay_secs, engine.part)
        requester.stop_loading()
        logger.info("stopping; %s RPCs in flight", application.traffic.count)
        return await drain(application.traffic, engine, settings.exit_timeout_secs, life.hurried)
    finally:
        listener.close()
        await requester.close()


async def drain(traffic: Traffic, engine: Engine, timeout_s: float, hurry: asyncio.Event) -> bool:
    """Waits for the RPCs that are on their way, while new inferences are refused, and closes the engine. False when the
    time-out or ``hurry`` came first."""
    traffic.stopped.set()
    idle = asyncio.ensure_future(traffic.until_idle())
    hurried = asyncio.ensure_future(hurry.wait())
    await asyncio.wait((idle, hurried), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finished = idle.done()
    if hurried.done() and not finished:
        logger.warning("a second signal: %s RPCs are cut off", traffic.count)
    idle.cancel()
    hurried.cancel()
    await engine.close(_WRITE_GRACE_S if finished else 0)
    return finished


def main() -> int:
    """The process's exit code."""
    return run("gRPC", logger, lambda settings: settings.allow_grpc, serve)
