"""The official client, unmodified, with and without asyncio."""

import asyncio
import queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as client
import tritonclient.grpc.aio as aio
from tritonclient.utils import InferenceServerException

from conch.messages import LogSettings, TraceSettings
from tests.frontends.grpc.support import EngineName, Frontend

FIRST = np.arange(16, dtype=np.int32).reshape(1, 16)
SECOND = np.full((1, 16), 3, np.int32)


def simple_inputs(module: Any = client) -> list[Any]:
    inputs = []
    for name, values in (("INPUT0", FIRST), ("INPUT1", SECOND)):
        tensor = module.InferInput(name, [1, 16], "INT32")
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def check(result: Any) -> None:
    assert (result.as_numpy("OUTPUT0") == FIRST + SECOND).all()
    assert (result.as_numpy("OUTPUT1") == FIRST - SECOND).all()


def test_everything_but_inference(frontend: Frontend) -> None:
    with client.InferenceServerClient(frontend.url) as triton:
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready("simple")
        assert not triton.is_model_ready("nope")
        assert triton.get_server_metadata(as_json=True)["name"] == "triton"
        assert triton.get_model_metadata("simple").inputs[0].name == "INPUT0"
        assert triton.get_model_config("simple").config.max_batch_size == 8
        assert "simple" in {model.name for model in triton.get_model_repository_index().models}
        frontend.requester.answers.append([])
        assert not triton.get_inference_statistics().model_stats
        frontend.requester.answers.append(TraceSettings(rate=5))
        assert triton.update_trace_settings(settings={"trace_rate": "5"}).settings["trace_rate"].value == ["5"]
        assert triton.get_trace_settings().settings["trace_level"].value == ["OFF"]
        frontend.requester.answers.append(LogSettings(verbose_level=2))
        updated = triton.update_log_settings({"log_verbose_level": 2, "log_info": True, "log_format": "default"})
        assert updated.settings["log_verbose_level"].uint32_param == 2
        assert triton.get_log_settings(as_json=True)["settings"]["log_info"] == {"bool_param": True}
        triton.load_model("simple", config="{}", files={"file:1/model.py": b"x"})
        triton.unload_model("simple")
        triton.register_system_shared_memory("r", "/k", 64)
        assert not triton.get_system_shared_memory_status().regions
        triton.unregister_system_shared_memory()


def test_inference(frontend: Frontend) -> None:
    with client.InferenceServerClient(frontend.url) as triton:
        check(triton.infer("simple", simple_inputs(), request_id="7", priority=1, timeout=10**6, client_timeout=10))
        result = triton.infer("simple", simple_inputs(), outputs=[client.InferRequestedOutput("OUTPUT1")])
        assert result.as_numpy("OUTPUT0") is None
        assert (result.as_numpy("OUTPUT1") == FIRST - SECOND).all()
        answers: queue.Queue[Any] = queue.Queue()
        triton.async_infer("simple", simple_inputs(), lambda result, error: answers.put((result, error)))
        result, error = answers.get(timeout=10)
        assert error is None
        check(result)
        with pytest.raises(InferenceServerException, match="Request for unknown model: 'nope' is not found") as raised:
            triton.infer("nope", simple_inputs())
        assert raised.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(frontend: Frontend, algorithm: str) -> None:
    with client.InferenceServerClient(frontend.url) as triton:
        check(triton.infer("simple", simple_inputs(), compression_algorithm=algorithm))


@pytest.mark.parametrize("level", ["low", "medium", "high"])
def test_compressed_responses(engine: EngineName, level: str) -> None:
    with Frontend(engine, grpc_infer_response_compression_level=level) as frontend:
        with client.InferenceServerClient(frontend.url) as triton:
            check(triton.infer("simple", simple_inputs()))
            assert triton.is_server_live()


def test_classification_and_text(frontend: Frontend) -> None:
    with client.InferenceServerClient(frontend.url) as triton:
        scores = client.InferInput("INPUT0", [1, 5], "FP32")
        scores.set_data_from_numpy(np.array([[0, 5, 1, 2, 3]], np.float32))
        outputs = [client.InferRequestedOutput("OUTPUT0", class_count=2)]
        result = triton.infer("scores", [scores], outputs=outputs)
        assert result.as_numpy("OUTPUT0").tolist() == [[b"5.000000:1:dog", b"3.000000:4"]]
        text = client.InferInput("INPUT0", [2], "BYTES")
        text.set_data_from_numpy(np.array([b"a\0b", "ä".encode()], np.object_))
        assert triton.infer("echo_bytes", [text]).as_numpy("OUTPUT0").tolist() == [b"a\0b", "ä".encode()]


def test_stream(frontend: Frontend) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with client.InferenceServerClient(frontend.url) as triton:
        triton.start_stream(lambda result, error: answers.put((result, error)))
        for i in range(20):
            triton.async_stream_infer(
                "simple" if i != 5 else "nope", simple_inputs(), request_id=str(i), enable_empty_final_response=True
            )
        for i in range(20):
            result, error = answers.get(timeout=10)
            if i == 5:
                assert "Request for unknown model: 'nope' is not found" in str(error)
                continue
            assert result.get_response().id == str(i)
            check(result)
        triton.stop_stream()


def test_keep_alive(frontend: Frontend) -> None:
    options = client.KeepAliveOptions(
        keepalive_time_ms=1000, keepalive_timeout_ms=500, keepalive_permit_without_calls=True
    )
    with client.InferenceServerClient(frontend.url, keepalive_options=options) as triton:
        check(triton.infer("simple", simple_inputs()))


def test_with_asyncio(frontend: Frontend) -> None:
    """In the server's own loop: gRPC's asyncio does not mix well with several."""

    async def use() -> None:
        async with aio.InferenceServerClient(frontend.url) as triton:
            assert await triton.is_server_ready()
            results = await asyncio.gather(*(triton.infer("simple", simple_inputs(aio)) for _ in range(20)))
            for result in results:
                check(result)
            with pytest.raises(InferenceServerException, match="is not found"):
                await triton.infer("nope", simple_inputs(aio))

            async def requests() -> Any:
                for i in range(10):
                    yield {"model_name": "simple", "inputs": simple_inputs(aio), "request_id": str(i)}

            ids = []
            async for result, error in triton.stream_infer(requests()):
                assert error is None
                check(result)
                ids.append(result.get_response().id)
            assert ids == [str(i) for i in range(10)]

    frontend.run(use())
