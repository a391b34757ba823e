"""Streams that are read slowly, cancelled, or lose their model: nobody else notices, and nothing stays behind."""

import json
import os
import random
import time
from pathlib import Path

import grpc
import pytest

from tests.scenarios.conftest import Serve
from tests.scenarios.decoupled import Stream, telling, text_of, write_decoupled_models
from tests.scenarios.harness import Server

#: ``CONCH_STREAMS=10000`` for more
STREAMS = int(os.environ.get("CONCH_STREAMS", "1000"))
#: of one worker's outputs: what stays leased would soon fill it
ARENA_NBYTES = 192 << 20
#: less than what the clients of one model may leave unread
SMALL_ARENA_NBYTES = 16 << 20
#: beyond what processes have before: the window of one stream, several copies of it on its way, and arenas
MORE_NBYTES = 256 << 20


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_decoupled_models(tmp_path / "models")
    return tmp_path / "models"


def state(server: Server) -> tuple[int, int]:
    """How many requests the model is working on, and how many large responses it has sent in all."""
    with Stream(server.grpc_url, telling("state")) as stream:
        (answer,) = stream.rest()
    running, sent = text_of(answer).split()
    return int(running), int(sent)


def memory_nbytes(server: Server) -> int:
    report = server.status()
    return sum(int(row["memory_nbytes"]) for row in (*report["processes"], *report["instances"]))


def until_idle(server: Server) -> None:
    """Nobody waits for anything any more, and the model knows it."""
    deadline = time.monotonic() + 20
    while True:
        report = server.status()
        busy = [row for row in report["processes"] if row["inflight"]]
        busy += [row for row in report["models"] if row["queued"] or row["running"]]
        if not busy and not state(server)[0]:
            return
        assert time.monotonic() < deadline, (busy, server.report())


@pytest.mark.timeout(90)
def test_a_client_that_does_not_read(serve: Serve, repository: Path) -> None:
    """It gets to hold a window's responses, whatever there is to send, while others are answered."""
    server = serve(repository)
    assert state(server) == (0, 0)
    before_nbytes = memory_nbytes(server)
    with Stream(server.grpc_url, telling("big 100000", "slow")) as slow:
        assert len(text_of(slow.answer())) == 100_000
        sent = -1
        while sent != state(server)[1]:  # the model waits as soon as the client's buffers are full
            sent = state(server)[1]
            with Stream(server.grpc_url, telling("n 300,f")) as other:
                assert [text_of(answer) for answer in other.rest()] == [str(i) for i in range(300)]
        assert state(server)[0] == 1
        assert memory_nbytes(server) - before_nbytes < MORE_NBYTES
        for _ in range(2 * sent):  # and goes on as soon as the client does
            assert len(text_of(slow.answer())) == 100_000
    until_idle(server)


@pytest.mark.timeout(90)
def test_clients_that_do_not_read_fill_a_worker_s_memory(serve: Serve, repository: Path) -> None:
    """Then the model waits for them, too: none of them is sent an error."""
    server = serve(repository, f"--worker-arena-nbytes={SMALL_ARENA_NBYTES}")
    streams = [Stream(server.grpc_url, telling("big 1000000")) for _ in range(4)]
    try:
        for stream in streams:
            assert len(text_of(stream.answer())) == 1_000_000
        sent = -1
        while sent != state(server)[1]:
            sent = state(server)[1]
        for _ in range(sent):
            for stream in streams:
                assert len(text_of(stream.answer())) == 1_000_000
    finally:
        for stream in streams:
            with stream:
                pass
    until_idle(server)


@pytest.mark.timeout(240 * max(1, STREAMS // 1000))
def test_streams_that_are_cancelled(serve: Serve, repository: Path) -> None:
    """At random, with small and large responses on their way."""
    server = serve(repository, f"--worker-arena-nbytes={ARENA_NBYTES}")
    choice = random.Random(5)
    for _ in range(STREAMS // 10):
        streams = []
        for number in range(10):
            requests = [telling(f"big {choice.choice((10, 1000, 300_000))}") for _ in range(choice.randint(1, 3))]
            requests.append(telling("s 0.01,n 5,f", str(number)))
            streams.append(Stream(server.grpc_url, *requests))
        for stream in streams:
            with stream:
                for _ in range(choice.choice((0, 1, 50))):
                    assert not stream.answer().error_message
    until_idle(server)
    with Stream(server.grpc_url, telling("big 1000000")) as stream:
        for _ in range(300):
            assert len(text_of(stream.answer())) == 1_000_000
    until_idle(server)


@pytest.mark.timeout(60)
def test_unload_while_responses_come(serve: Serve, repository: Path) -> None:
    """The model goes when its last response is sent; whoever asks later is refused."""
    server = serve(repository, "--model-control-mode=explicit", "--load-model=tell")
    with Stream(server.grpc_url, telling("r a,s 1,r b,s 0.2,rf c")) as stream:
        assert text_of(stream.answer()) == "a"
        assert server.request("POST", "/v2/repository/models/tell/unload", b"{}")[0] == 200
        stream.send(telling("rf late"))
        found = [text_of(answer) for answer in stream.rest()]
    assert [text for text in found if len(text) == 1] == ["b", "c"]
    refusal = "Request for unknown model: 'tell' has no available versions"
    assert [text for text in found if len(text) > 1] == [refusal]
    deadline = time.monotonic() + 10
    while [row for row in json.loads(server.request("POST", "/v2/repository/index")[1]) if row.get("state") == "READY"]:
        assert time.monotonic() < deadline, server.report()


@pytest.mark.timeout(60)
def test_a_worker_that_dies(serve: Serve, repository: Path) -> None:
    """What has had a response ends with an error, in its place; the stream goes on."""
    server = serve(repository)
    with Stream(server.grpc_url, telling("r a,s 20,f", "1")) as stream:
        assert text_of(stream.answer()) == "a"
        stream.send(telling("r b,die", "2"))
        found = [stream.answer() for _ in range(3)]
        stream.send(telling("rf on", "3"))
        assert [text_of(answer) for answer in stream.rest()] == ["on"]
    by_id = {id: [answer for answer in found if answer.infer_response.id == id] for id in ("1", "2")}
    assert text_of(by_id["2"][0]) == "b"
    for id in ("1", "2"):
        last = by_id[id][-1]
        assert "SIGKILL" in last.error_message
        assert last.infer_response.parameters["triton_final_response"].bool_param


@pytest.mark.timeout(60)
def test_stopping_while_responses_come(serve: Serve, repository: Path) -> None:
    """What is on its way is finished; the fixture looks at what stays behind."""
    server = serve(repository)
    with Stream(server.grpc_url, telling("r a,s 1,rf b")) as stream:
        assert text_of(stream.answer()) == "a"
        assert server.process is not None
        server.process.terminate()
        assert text_of(stream.answer()) == "b"
        with pytest.raises(grpc.RpcError):
            list(stream.rest())
