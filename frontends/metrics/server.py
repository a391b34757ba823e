"""The metrics frontend process: wiring, start and stop."""

import asyncio
import logging

import uvloop

from conch.errors import ConchError
from conch.process import begin, keep_what_is_there, on_stop_signals
from conch.run_dir import RunDir
from conch.settings import Settings
from frontends.http.engine import Engine, Limits
from frontends.listening import bind, listen
from frontends.metrics.application import MetricsApplication
from frontends.metrics.machine import MachineMeter
from frontends.metrics.observer import Observer
from frontends.metrics.options import MetricsOptions

logger = logging.getLogger("conch.frontends.metrics.server")

#: a page is small and made quickly: what is not read by then is not being read
_STOP_WITHIN_S = 2.0
_LIMITS = Limits(connections=256, buffered_nbytes=1 << 20, body_nbytes=1 << 16, pipelined=1)


async def serve(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT. The port opens once the models have been loaded, one way or the other. Raises
    ``ConchError``."""
    options = MetricsOptions.parse(settings.metrics_config)
    for name in options.without_effect:
        logger.warning("--metrics-config %s is accepted but has no effect yet", name)
    address = settings.metrics_address or settings.http_address
    listener = bind(address, settings.metrics_port, reuse_port=False)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    on_stop_signals(loop, stop.set)
    observer = Observer(RunDir(settings.run_dir))
    try:
        await _first(observer.loaded, stop)
        if stop.is_set():
            return
        application = MetricsApplication(observer, latencies=options.counter_latencies)
        engine = Engine(application, _LIMITS)
        listen(listener)
        await engine.listen(listener)
        logger.info("Started Metrics Service at %s:%s", address, settings.metrics_port)
        keep_what_is_there()
        looking = asyncio.ensure_future(_look_at_machine(application, settings)) if settings.allow_cpu_metrics else None
        await stop.wait()
        if looking is not None:
            looking.cancel()
        await engine.drain(_STOP_WITHIN_S)
    finally:
        listener.close()
        observer.close()


async def _look_at_machine(application: MetricsApplication, settings: Settings) -> None:
    meter = MachineMeter()
    while True:
        application.machine = meter.look()
        await asyncio.sleep(settings.metrics_interval_ms / 1000)


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def main() -> int:
    """Exit codes: 0 after a stop signal, 1 otherwise."""
    try:
        settings = Settings.from_environ()
    except ConchError as error:
        logging.basicConfig()
        logger.error("%s", error.message)
        return 1
    begin(settings)
    if not settings.allow_metrics:
        return 0
    try:
        uvloop.run(serve(settings))
    except (ConchError, OSError) as error:
        logger.error("the metrics frontend cannot run: %s", error)
        return 1
    return 0
