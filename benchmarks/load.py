"""Load on one HTTP server: ``wrk`` where it is installed, otherwise a small client of ours on uvloop.

Both keep a number of connections busy with one request at a time each, for a number of seconds.
"""

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.models import HttpRequest

#: what the generator may take beyond the seconds that it measures
GRACE_S = 15

WRK_SCRIPT = """\
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
{headers}
function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        "RESULT {{\\"requests\\": %d, \\"microseconds\\": %d, \\"p50\\": %d, \\"p99\\": %d, \\"errors\\": %d}}\\n",
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True)
class Measurement:
    """Latencies in seconds."""

    requests_per_s: float
    p50_s: float
    p99_s: float


class LoadFailed(Exception):
    """The server answered something else, or too late."""


def wrk_installed() -> bool:
    return shutil.which("wrk") is not None


def measure(
    address: str, request: HttpRequest, clients: int, seconds: float, long_requests: bool = False
) -> Measurement:
    """Raises ``LoadFailed`` if a single request fails.

    ``long_requests``: wait for every request that was sent, and count it. wrk cuts its window off instead, which loses
    a visible part of requests that take a tenth of a second, and leaves the server busy for the next measurement.
    """
    if wrk_installed() and not long_requests:
        return _measure_with_wrk(address, request, clients, max(1, round(seconds)))
    return uvloop.run(_measure_with_asyncio(address, request, clients, seconds))


def ask_once(address: str, request: HttpRequest) -> None:
    """One request whose answer is looked at. Raises ``LoadFailed`` if it is not the right one."""
    status, body = uvloop.run(_ask_once(address, request))
    if status != 200 or request.expected not in body:
        raise LoadFailed(f"{request.path} at {address} answered {status}: {body[:300]!r}")


# ----------------------------------------------------------------------------------------------------------------- wrk


def _measure_with_wrk(address: str, request: HttpRequest, clients: int, seconds: int) -> Measurement:
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(request.body)
        headers = "\n".join(f'wrk.headers["{name}"] = "{text}"' for name, text in request.headers.items())
        script = Path(folder) / "script.lua"
        script.write_text(WRK_SCRIPT.format(body=body, headers=headers))
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout=10s", f"-s{script}"]
        command.append(f"http://{address}{request.path}")
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + GRACE_S)
    found = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode != 0 or not found:
        raise LoadFailed(f"wrk failed: {done.stdout}{done.stderr}")
    result = json.loads(found[0])
    if result["errors"] or not result["requests"]:
        raise LoadFailed(f"{result['errors']} of {result['requests']} requests failed")
    rate = result["requests"] / (result["microseconds"] / 1e6)
    return Measurement(rate, result["p50"] / 1e6, result["p99"] / 1e6)


# ------------------------------------------------------------------------------------------------------------- asyncio


def _wire(request: HttpRequest) -> bytes:
    headers = "".join(f"{name}: {text}\r\n" for name, text in request.headers.items())
    head = f"POST {request.path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(request.body)}\r\n\r\n"
    return head.encode() + request.body


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: bytes) -> tuple[int, bytes]:
    writer.write(wire)
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    lengths = [line.partition(":")[2] for line in lines if line.lower().startswith("content-length:")]
    return int(status.split(" ")[1]), await reader.readexactly(int(lengths[0]))


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=1 << 20)


async def _ask_once(address: str, request: HttpRequest) -> tuple[int, bytes]:
    reader, writer = await _connect(address)
    try:
        return await asyncio.wait_for(_exchange(reader, writer, _wire(request)), GRACE_S)
    finally:
        writer.close()


async def _measure_with_asyncio(address: str, request: HttpRequest, clients: int, seconds: float) -> Measurement:
    wire = _wire(request)
    latencies: list[float] = []
    begin = time.perf_counter()

    async def client() -> None:
        reader, writer = await _connect(address)
        try:
            while (sent := time.perf_counter()) < begin + seconds:
                status, body = await _exchange(reader, writer, wire)
                if status != 200:
                    raise LoadFailed(f"{request.path} answered {status}: {body[:300]!r}")
                latencies.append(time.perf_counter() - sent)
        finally:
            writer.close()

    async with asyncio.timeout(seconds + GRACE_S):
        await asyncio.gather(*(client() for _ in range(clients)))
    elapsed = time.perf_counter() - begin
    latencies.sort()
    return Measurement(len(latencies) / elapsed, latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)])
