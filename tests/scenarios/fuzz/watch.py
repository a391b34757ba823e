"""What must hold for a server whatever it is sent: see ``Watch``."""

import http.client
import json
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from tests.differential.grpc_cases import SERVICE, good, pb
from tests.processes import Process, status
from tests.scenarios.harness import Server, orphans
from tests.scenarios.malformed_cases import NUMBERS, SIMPLE, request

#: a frontend's arena, as small as it may be
ARENA_NBYTES = 1 << 20
#: the largest tensor: a request may be as large as the arena. A few blocks that nobody frees, and it fits no more
LARGEST_NBYTES = ARENA_NBYTES - 192

INFER = SERVICE + "ModelInfer"
ANSWER_WITHIN_S = 10.0
SETTLED_WITHIN_S = 10.0
#: what libraries open when they first need it
LIBRARY_DESCRIPTORS = 4
DOUBLED = struct.pack("<16i", *(2 * number for number in NUMBERS))

#: an input of every model but simple: name, datatype, shape, bytes
INPUTS = (
    ("echo_int32", "INT32", (LARGEST_NBYTES // 4,), LARGEST_NBYTES),
    ("echo_bytes", "BYTES", (1,), 4),
    ("echo_fp32", "FP32", (1,), 4),
    ("matrix", "FP32", (1, 2), 8),
    ("scores", "FP32", (1, 5), 20),
)

#: HTTP 500 and gRPC's INTERNAL are Triton's answers to these, all of them the client's fault
JSON_ERRORS = (
    *("failed to parse the request JSON buffer", "attempt to access JSON", "attempt to access non-existing object"),
    *("attempt to get members for non-object", "failed to get request params", "Unable to parse"),
    *("shape does not match true shape", "Shape does not match true shape"),
)
REGION_ERRORS = ("Unable to open shared memory region", "bytes to hold the results")
PROTOBUF_ERRORS = ("Unable to parse request",)
#: Triton says UNAVAILABLE, 503, to these; nobody else is told so here
SETTING_ERRORS = ("invalid argument for --log_format",)
LOAD_ERRORS = ("failed to load ", "failed to poll ")


class Finding(AssertionError):
    """The server did what it never may."""


def check_http(status: int, body: bytes, *more: str) -> None:
    """Raises ``Finding`` for an answer that blames the server. ``more``: texts that are allowed with a 500."""
    if status < 500:
        return
    text = body.decode(errors="replace")
    if status == 501 or (status == 503 and any(part in text for part in SETTING_ERRORS)):
        return
    if status == 500 and "internal error" not in text and any(part in text for part in (*JSON_ERRORS, *more)):
        return
    raise Finding(f"HTTP {status}: {text}")


def check_grpc(code: str, text: str, *more: str) -> None:
    if code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"):
        return
    if code == "UNAVAILABLE" and any(part in text for part in SETTING_ERRORS):
        return
    if code == "INTERNAL" and any(part in text for part in (*PROTOBUF_ERRORS, *more)):
        return
    raise Finding(f"gRPC {code}: {text}")


class Watch:
    """Looks at a server while it is fuzzed: its processes live on, other clients get right answers, and in the end it
    holds no more than at the beginning."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._http = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=ANSWER_WITHIN_S)
        self._channel = grpc.insecure_channel(server.grpc_url, [("grpc.use_local_subchannel_pool", 1)])
        self._infer = self._channel.unary_unary(INFER)
        self._good = good().SerializeToString()

    def begin(self) -> None:
        """What there is now is what must be there in the end."""
        for each in INPUTS:
            self._check_input(*each)
        self.answers_others()
        self._programs = self._current_programs()
        self._processes = self._current_processes()
        self._descriptors = self._current_descriptors()

    def close(self) -> None:
        self._http.close()
        self._channel.close()

    # ------------------------------------------------------------------------------------------- after every request

    def lives(self) -> None:
        """Every process is still the one that it was."""
        for process in self._processes:
            found = status(process.pid)
            if found is None or found.process != process or found.state == "Z":
                self._processes = self._current_processes()
                raise Finding(f"process {process.pid} has died")

    def answers_others(self) -> None:
        """On connections that have been there all along."""
        try:
            code, body = self._ask(SIMPLE, request())
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            raise Finding(f"a good request over HTTP: {error!r}") from error
        if code != 200 or json.loads(body)["outputs"][0]["data"] != [2 * number for number in NUMBERS]:
            raise Finding(f"a good request over HTTP: {code} {body!r}")
        try:
            answer = pb.ModelInferResponse.FromString(self._infer(self._good, timeout=ANSWER_WITHIN_S))
        except grpc.RpcError as error:
            raise Finding(f"a good request over gRPC: {error.code()} {error.details()}") from error
        if answer.raw_output_contents[0] != DOUBLED:
            raise Finding(f"a good request over gRPC: {answer}")

    def _ask(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        self._http.request("POST", path, body, headers or {})
        response = self._http.getresponse()
        return response.status, response.read()

    # --------------------------------------------------------------------------------------------------- in the end

    def settled(self) -> None:
        """Raises ``Finding`` if something is held that was not before."""
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while True:
            try:
                self._check_settled()
                return
            except Finding:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def _check_settled(self) -> None:
        self.lives()
        self.answers_others()
        self._check_input(*INPUTS[0])
        descriptors = self._current_descriptors()
        for pid, before in self._descriptors.items():
            new = descriptors.get(pid, [])
            if len(new) > len(before) + LIBRARY_DESCRIPTORS:
                raise Finding(f"process {pid} has {len(new)} descriptors instead of {len(before)}: {sorted(new)}")
            regions = [target for target in new if "/client-" in target]
            if regions:
                raise Finding(f"process {pid} holds regions: {regions}")
        programs = self._current_programs()
        if programs != self._programs:
            raise Finding(f"the processes were {self._programs} and are {programs}")
        if left := orphans():
            raise Finding(f"segments without an owner: {left}")

    def _check_input(self, model: str, datatype: str, shape: Sequence[int], nbytes: int) -> None:
        """It is answered over HTTP and gRPC. The first of ``INPUTS`` takes up a frontend's and a worker's arena."""
        tensor = {"name": "INPUT0", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": nbytes}}
        text = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        code, body = self._ask(f"/v2/models/{model}/infer", text + bytes(nbytes), headers)
        if code != 200:
            raise Finding(f"{nbytes} bytes for {model} over HTTP: {code} {body[:500]!r}")
        message = pb.ModelInferRequest(model_name=model, raw_input_contents=[bytes(nbytes)])
        message.inputs.add(name="INPUT0", datatype=datatype, shape=shape)
        try:
            self._infer(message.SerializeToString(), timeout=ANSWER_WITHIN_S)
        except grpc.RpcError as error:
            raise Finding(f"{nbytes} bytes for {model} over gRPC: {error.code()} {error.details()}") from error

    def _current_programs(self) -> list[tuple[str, int, int]]:
        """Name, pid and number of requests in flight of every process, the models' among them."""
        report = self.server.status()
        rows = [(row["name"], row["pid"], row["inflight"]) for row in report["processes"]]
        instances = [row for row in report["instances"] if row["model"] != "other"]
        return sorted([*rows, *((row["instance"], row["pid"], row["restarts"]) for row in instances)])

    def _current_processes(self) -> list[Process]:
        pids = {pid for _, pid, _ in self._current_programs() if pid}
        found = (status(pid) for pid in pids)
        return [each.process for each in found if each is not None]

    def _current_descriptors(self) -> dict[int, list[str]]:
        return {process.pid: descriptors(process.pid) for process in self._processes}


def descriptors(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(path))
        except FileNotFoundError:
            pass
    return found


def show(watch: Watch, answers: dict[Any, int]) -> None:
    """For ``pytest -s``, and for the report of a test that failed."""
    ordered = sorted(answers.items(), key=lambda item: -item[1])
    print(f"{watch.server.url}: " + ", ".join(f"{answer}: {count}" for answer, count in ordered))
