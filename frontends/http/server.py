"""The HTTP frontend process: wiring, start and stop."""

import asyncio
import logging

from conch.process import keep_what_is_there
from conch.requester.requester import Requester
from conch.run_dir import RunDir
from conch.settings import Settings
from conch.tls import server_context
from frontends.http.application import HttpApplication
from frontends.http.engine import Engine, Limits
from frontends.listening import bind, listen, most_connections
from frontends.running import Life, first, run

logger = logging.getLogger("conch.frontends.http.server")


async def serve(settings: Settings) -> bool:
    """Runs until SIGTERM or SIGINT, step by step as ``Life`` has it. Returns whether everything in flight was answered
    within ``exit_timeout_secs`` of the drain.

    Clients can connect once the models to be loaded at start have been, one way or the other. Raises ``ConchError``.
    """
    tls = server_context(settings, "http")
    reuse_port = settings.reuse_http_port or settings.http_process_count > 1
    listener = bind(settings.http_address, settings.http_port, reuse_port)
    life = Life()
    life.follow_signals(asyncio.get_running_loop())
    requester = Requester(
        RunDir(settings.run_dir),
        role="http",
        arena_cap_nbytes=settings.frontend_arena_nbytes,
        max_inflight=settings.max_inflight,
    )
    requester.on_table = life.look_at
    application = HttpApplication(requester, settings)
    await requester.start()
    try:
        await first(life.loaded, life.leaving)
        if life.leaving.is_set():
            return True
        listen(listener)
        engine = Engine(application, _limits(settings), keep_headers=application.forwards_headers)
        await engine.listen(listener, tls)
        logger.info("Started HTTPService at %s:%s", settings.http_address, settings.http_port)
        keep_what_is_there()
        await life.leaving.wait()
        application.leave()
        logger.info("not ready any more")
        await life.serve_on(settings.drain_delay_secs, engine.part)
        requester.stop_loading()
        logger.info("stopping; %s connections open, %s requests in flight", len(engine.connections), requester.inflight)
        return await _drain(engine, settings.exit_timeout_secs, life.hurried)
    finally:
        listener.close()
        await requester.close()


async def _drain(engine: Engine, timeout_seconds: float, hurry: asyncio.Event) -> bool:
    draining = asyncio.ensure_future(engine.drain(timeout_seconds))
    hurried = asyncio.ensure_future(hurry.wait())
    await asyncio.wait((draining, hurried), return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if draining.done():
        return draining.result()
    logger.warning("a second signal: %s connections are cut off", len(engine.connections))
    draining.cancel()
    await engine.close()
    return False


def _limits(settings: Settings) -> Limits:
    defaults = Limits()
    return Limits(
        connections=most_connections(defaults.connections),
        body_nbytes=min(defaults.body_nbytes, settings.frontend_arena_nbytes),
        buffered_nbytes=settings.frontend_arena_nbytes,
        unsent_nbytes=settings.frontend_arena_nbytes // 4,
    )


def main() -> int:
    """The process's exit code."""
    return run("HTTP", logger, lambda settings: settings.allow_http, serve)
