"""The metrics frontend process: wiring, start and stop."""

import asyncio
import logging

from conch.process import keep_what_is_there, on_stop_signals
from conch.run_dir import RunDir
from conch.settings import Settings
from frontends.http.engine import Engine, Limits
from frontends.listening import bind, listen
from frontends.metrics.application import MetricsApplication
from frontends.metrics.machine import MachineMeter
from frontends.metrics.observer import Observer
from frontends.metrics.options import MetricsOptions
from frontends.running import first, run

logger = logging.getLogger("conch.frontends.metrics.server")

#: a page is small and made quickly: what is not read by then is not being read
_STOP_WITHIN_S = 2.0
_LIMITS = Limits(connections=256, buffered_nbytes=1 << 20, body_nbytes=1 << 16, pipelined=1)


async def serve(settings: Settings) -> bool:
    """Runs until SIGTERM or SIGINT and returns True: nobody minds a page that was cut off. The port opens once the
    models have been loaded, one way or the other. Raises ``ConchError``."""
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
        await first(observer.loaded, stop)
        if stop.is_set():
            return True
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
        return True
    finally:
        listener.close()
        observer.close()


async def _look_at_machine(application: MetricsApplication, settings: Settings) -> None:
    meter = MachineMeter()
    while True:
        application.machine = meter.look()
        await asyncio.sleep(settings.metrics_interval_ms / 1000)


def main() -> int:
    """The process's exit code."""
    return run("metrics", logger, lambda settings: settings.allow_metrics, serve)
