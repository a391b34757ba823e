"""ONNX models in real workers."""

import numpy as np
import pytest
from onnx import TensorProto

from conch import tensors
from tests.workers import onnx_models
from tests.workers.harness import Array, Stage


def rows(*values: float) -> Array:
    return np.array([values], np.float32)


def test_a_model_without_a_configuration(stage: Stage) -> None:
    worker, config = stage.complete(stage.onnx_model("add", onnx_models.add_sub("n", 3)))
    assert config["max_batch_size"] == 4
    assert config["dynamic_batching"] == {}
    assert config["input"] == [
        {"name": "A", "data_type": "TYPE_FP32", "dims": [3]},
        {"name": "B", "data_type": "TYPE_FP32", "dims": [3]},
    ]
    outputs = stage.requester.outputs(stage.infer(worker, "add", A=rows(1, 2, 3), B=rows(10, 20, 30)))
    assert list(outputs) == ["SUM", "DIFFERENCE"]
    assert np.array_equal(outputs["SUM"], rows(11, 22, 33))
    assert np.array_equal(outputs["DIFFERENCE"], rows(-9, -18, -27))


def test_a_batch_is_put_together_and_split(stage: Stage) -> None:
    worker, _ = stage.complete(
        stage.onnx_model("add", onnx_models.add_sub("n", 2)), backend_config={"default-max-batch-size": "32"}
    )
    for _ in range(2):  # the second time in the buffers of the first
        arrays = [np.arange(2 * size, dtype=np.float32).reshape(size, 2) + size for size in (1, 3, 2)]
        requests = [
            stage.requester.request("add", stage.requester.put("A", array), stage.requester.put("B", array / 2))
            for array in arrays
        ]
        requests[1] = stage.requester.request("add", *requests[1].inputs, outputs=("DIFFERENCE",))
        batch = stage.send(worker, *requests)
        for position, array in enumerate(arrays):
            outputs = stage.requester.outputs(stage.requester.response(worker))
            if position != 1:
                assert np.array_equal(outputs.pop("SUM"), array * 1.5)
            assert np.array_equal(outputs.pop("DIFFERENCE"), array / 2)
            assert not outputs
        done = stage.done(batch)
        assert done.started_ns <= done.infer_start_ns <= done.infer_end_ns <= done.ended_ns


def test_strings(stage: Stage) -> None:
    worker, config = stage.complete(
        stage.onnx_model("text", onnx_models.identity(TensorProto.STRING, ["n", 2])),
    )
    assert config["input"][0]["data_type"] == "TYPE_STRING"
    texts = np.array([["a", "\u00e9"]], np.object_)
    outputs = stage.requester.outputs(stage.infer(worker, "text", X=texts))
    assert outputs["Y"].tolist() == [[b"a", "\u00e9".encode()]]
    requests = [stage.requester.request("text", stage.requester.put("X", texts)) for _ in range(2)]
    stage.send(worker, *requests)
    for _ in requests:
        assert stage.requester.outputs(stage.requester.response(worker))["Y"].tolist() == [[b"a", "\u00e9".encode()]]


def test_no_text(stage: Stage) -> None:
    worker, _ = stage.complete(stage.onnx_model("text", onnx_models.identity(TensorProto.STRING, ["n", 1])))
    response = stage.infer(worker, "text", X=np.array([[b"\xff"]], np.object_))
    assert response.error is not None and "utf-8" in response.error.message
    assert stage.requester.outputs(stage.infer(worker, "text", X=np.array([["b"]], np.object_)))["Y"] == b"b"


def test_half_precision(stage: Stage) -> None:
    worker, _ = stage.complete(stage.onnx_model("half", onnx_models.identity(TensorProto.FLOAT16, ["n", 2])))
    values = np.array([[1.5, -2]], np.float16)
    assert np.array_equal(stage.requester.outputs(stage.infer(worker, "half", X=values))["Y"], values)


def test_bf16(stage: Stage) -> None:
    worker, config = stage.complete(stage.onnx_model("brain", onnx_models.identity(TensorProto.BFLOAT16, ["n", 2])))
    assert config["input"][0]["data_type"] == "TYPE_BF16"
    patterns = tensors.fp32_to_bf16(np.array([[1.5, -2]], np.float32))
    requests = [
        stage.requester.request("brain", stage.requester.put_bytes("X", "BF16", (1, 2), patterns.tobytes()))
        for _ in range(3)
    ]
    stage.send(worker, requests[0])
    stage.send(worker, *requests[1:])
    for _ in requests:
        response = stage.requester.response(worker)
        assert response.error is None, response.error
        assert response.outputs[0].datatype == "BF16"
        assert np.array_equal(stage.requester.outputs(response)["Y"], patterns)


def test_scalars(stage: Stage) -> None:
    worker, config = stage.complete(stage.onnx_model("one", onnx_models.identity(TensorProto.FLOAT, [])))
    assert config["max_batch_size"] == 0
    assert config["output"] == [{"name": "Y", "data_type": "TYPE_FP32", "dims": [1]}]
    outputs = stage.requester.outputs(stage.infer(worker, "one", X=np.array([2.5], np.float32)))
    assert outputs["Y"].tolist() == [2.5] and outputs["Y"].shape == (1,)


def test_a_scalar_per_request_is_reshaped(stage: Stage) -> None:
    worker, config = stage.complete(stage.onnx_model("one", onnx_models.identity(TensorProto.FLOAT, ["n"])))
    assert config["output"] == [{"name": "Y", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}]
    outputs = stage.requester.outputs(stage.infer(worker, "one", X=np.array([[2.5], [3]], np.float32)))
    assert outputs["Y"].tolist() == [[2.5], [3]]


def test_a_failing_run_fails_its_requests_only(stage: Stage) -> None:
    worker = stage.ready(
        stage.onnx_model(
            "add",
            onnx_models.add_sub(),
            {
                "max_batch_size": 8,
                "input": [{"name": name, "data_type": "TYPE_FP32", "dims": [-1]} for name in "AB"],
                "output": [{"name": "SUM", "data_type": "TYPE_FP32", "dims": [-1]}],
            },
        )
    )
    response = stage.infer(worker, "add", A=rows(1, 2), B=rows(1, 2, 3))
    assert response.error is not None and response.error.kind == "ModelError"
    assert "onnx runtime error" in response.error.message
    assert np.array_equal(
        stage.requester.outputs(stage.infer(worker, "add", A=rows(1, 2), B=rows(1, 2)))["SUM"], rows(2, 4)
    )


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"execution_mode": "7"}, "execution_mode are 0 or 1 but got 7"),
        ({"intra_op_thread_count": "many"}, "'intra_op_thread_count' must be a whole number, not 'many'"),
        ({"enable_mem_arena": "perhaps"}, "'enable_mem_arena' must be 0 or 1, not 'perhaps'"),
    ],
)
def test_wrong_parameters(stage: Stage, parameters: dict[str, str], text: str) -> None:
    described = {name: {"string_value": value} for name, value in parameters.items()}
    config = stage.onnx_model("add", onnx_models.add_sub(), {"parameters": described})
    assert text in stage.load_failure(config, complete=True)


def test_parameters(stage: Stage) -> None:
    names = {
        "execution_mode": "1",
        "intra_op_thread_count": "1",
        "inter_op_thread_count": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "0",
    }
    parameters = {name: {"string_value": value} for name, value in names.items()}
    optimization = {"graph": {"level": -1}}
    worker, _ = stage.complete(
        stage.onnx_model("add", onnx_models.add_sub(), {"parameters": parameters, "optimization": optimization})
    )
    assert stage.requester.outputs(stage.infer(worker, "add", A=rows(1), B=rows(2)))["SUM"] == rows(3)


def test_reasons_of_failure(stage: Stage) -> None:
    assert "unable to load model 'broken': " in stage.load_failure(stage.onnx_model("broken", b"\x08\x08garbage"))
    missing = stage.onnx_model("missing", b"", {"default_model_filename": "other.onnx"})
    assert stage.load_failure(missing) == "unable to find 'missing/1/other.onnx' for model instance 'missing_0_0'"
    with_gpu = stage.onnx_model("gpu", onnx_models.add_sub())
    assert stage.load_failure(with_gpu, kind="KIND_GPU").endswith("pip install 'conch[onnxruntime-gpu]'")
    other = stage.onnx_model("other", b"", {"backend": "tensorrt"})
    assert "there is no backend 'tensorrt'" in stage.load_failure(other)
