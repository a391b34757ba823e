"""What a configuration is refused for, in Triton's words."""

from pathlib import Path

import pytest

from broker.repository import Host, complete
from conch.messages import Fault
from tests.broker.repository.models import TENSORS, found, refused, repository, write_model

#: reasons found when the configuration is read: a load call answers "failed to poll"
POLL = [
    ('name: "other"', "unexpected directory name 'm' for model 'other', directory name must equal model name"),
    ("max_batch_size: -1", "'max_batch_size' must be non-negative value for m"),
    (
        "max_batch_size: 2 dynamic_batching { preferred_batch_size: [ 4 ] }",
        "dynamic batching preferred size must be <= max batch size for m",
    ),
    (
        "max_batch_size: 2 dynamic_batching { preferred_batch_size: [ 0 ] }",
        "dynamic batching preferred size must be positive for m",
    ),
    (
        "dynamic_batching { priority_levels: 2 }",
        "default priority level must be in range [1, 2] for m",
    ),
    (
        "dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
        "default priority level must be in range [1, 2] for m",
    ),
    (
        "dynamic_batching { priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { } } }",
        "priority queue policy must have priority level in range [1, 2] for m",
    ),
    (
        "dynamic_batching { preserve_ordering: true priority_levels: 2 default_priority_level: 1 }",
        "Only one priority level is allowed when 'preserve_ordering' is true for m",
    ),
    (
        "dynamic_batching { preserve_ordering: true "
        "default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1 } }",
        "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m",
    ),
    (
        "model_transaction_policy { decoupled: true } response_cache { enable: true }",
        "Response Cache does not currently support model m with 'decoupled' transaction policy. "
        "Please disable the response cache.",
    ),
    (
        "sequence_batching { control_input { name: 'S' control { kind: CONTROL_SEQUENCE_START } } }",
        "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' for "
        "CONTROL_SEQUENCE_START for m",
    ),
    (
        "sequence_batching { control_input { name: 'S' control { kind: CONTROL_SEQUENCE_START "
        "int32_false_true: [ 0 ] } } }",
        "sequence batching control 'int32_false_true' must have exactly 2 entries for CONTROL_SEQUENCE_START for m",
    ),
    (
        "max_batch_size: 1 sequence_batching { oldest { preferred_batch_size: 2 } }",
        "sequence batching preferred batch size must be <= max batch size for m",
    ),
    ("default_model_filename: '../../x'", "'default_model_filename' must stay within the model directory for m"),
    ("default_model_filename: '/etc/passwd'", "'default_model_filename' must stay within the model directory for m"),
]


@pytest.mark.parametrize(("extra", "reason"), POLL)
def test_configurations_that_cannot_be_read(extra: str, reason: str, tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", f'backend: "python" {TENSORS} {extra}')
    result = repository(tmp_path / "models").poll("m")
    assert refused(result).message == reason
    assert result is refused(result), "it was read all the same"


PLATFORMS = [
    ("platform: 'foo'", "unexpected platform type 'foo' for m"),
    ("platform: 'tensorrt_plan' backend: 'onnxruntime'",
     "unexpected 'platform' and 'backend' pair, got:tensorrt_plan, onnxruntime"),
    ("platform: 'ensemble' backend: 'python'",
     "Ensemble model 'm' must have platform type 'ensemble' and empty backend type"),
    ("platform: 'ensemble'", "ensemble scheduling must be set for ensemble m whose platform is ensemble"),
    ("backend: 'python' ensemble_scheduling { }",
     "ensemble scheduling cannot be set for model 'm' whose platform is not ensemble"),
    ("platform: 'ensemble' ensemble_scheduling { }", "must specify 'step' for ensemble 'm'"),
    ("platform: 'ensemble' ensemble_scheduling { step { model_name: 'x' } }",
     "must specify 'input_map' in step 0 of ensemble 'm'"),
    ("platform: 'ensemble' instance_group { } ensemble_scheduling { }",
     "instance group should not be specified for ensemble 'm'"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "reason"), PLATFORMS)
def test_platforms_that_do_not_fit(config: str, reason: str, tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", config + TENSORS)
    assert refused(repository(tmp_path / "models").poll("m")).message == reason


TENSOR = [
    ("input { data_type: TYPE_FP32 dims: 1 }", "model input must specify 'name' for m"),
    ("input { name: 'x' dims: 1 }", "model input 'x' must specify 'data_type' for m"),
    ("output { name: 'x' data_type: TYPE_FP32 }", "model output 'x' must specify 'dims' for m"),
    (
        "input { name: 'x' data_type: TYPE_FP32 dims: 0 }",
        "model input 'x' dimension must be integer >= 1, or -1 to indicate a variable-size dimension for m",
    ),
    (
        "input { name: 'x' data_type: TYPE_FP32 dims: 1 reshape { shape: [ ] } }",
        "model input 'x' cannot have empty reshape for non-batching model as scalar tensors are not supported for m",
    ),
    (
        "input { name: 'x' data_type: TYPE_FP32 dims: 2 reshape { shape: [ 0 ] } }",
        "model input 'x' reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension for m",
    ),
    (
        "input { name: 'x' data_type: TYPE_FP32 dims: 2 reshape { shape: [ 3 ] } }",
        "model input 'x' has different size for dims and reshape for m",
    ),
    (
        "input { name: 'x' data_type: TYPE_FP32 dims: [ -1, 4 ] reshape { shape: [ 2, -1, 2 ] } }",
        "model input 'x' has different size for dims and reshape for m",
    ),
    (
        "input { name: 'x' data_type: TYPE_FP32 dims: [ -1, -1 ] reshape { shape: [ -1 ] } }",
        "model input 'x' has different number of variable-size dimensions for dims and reshape for m",
    ),
    (
        "max_batch_size: 1 input { name: 'x' data_type: TYPE_FP32 dims: 2 reshape { shape: [ ] } }",
        "model input 'x' has different size for dims and reshape for m",
    ),
    (
        "input { name: 'x' data_type: TYPE_FP32 dims: 1 format: FORMAT_NHWC }",
        "model input NHWC/NCHW require 3 dims for m",
    ),
    (
        "input { name: 'x' data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }",
        "shape tensors are only supported for TensorRT platform for m",
    ),
    (
        "input { name: 'x' data_type: TYPE_FP32 dims: 1 is_non_linear_format_io: true }",
        "Non-linear IO format is only supported for the TensorRT platform for m",
    ),
    (
        "input { name: 'x' data_type: TYPE_FP32 dims: 1 } input { name: 'x' data_type: TYPE_FP32 dims: 1 }",
        "model input 'x' is specified more than once for m",
    ),
]


@pytest.mark.parametrize(("tensors", "reason"), TENSOR)
def test_tensors_that_cannot_be(tensors: str, reason: str, tmp_path: Path) -> None:
    """Without auto-complete they are refused when read, with it when the backend has completed them."""
    write_model(tmp_path / "models", "m", f'backend: "python" {tensors}')
    result = repository(tmp_path / "models", auto_complete=False).poll("m")
    assert found(result).versions == (1,)
    assert refused(result).message == reason
    completing = found(repository(tmp_path / "models").poll("m"))
    assert completing.fault is None
    with pytest.raises(Exception) as error:
        complete(completing, completing.config_json)
    assert str(error.value) == reason


@pytest.mark.parametrize(
    "tensors",
    [
        "max_batch_size: 1 input { name: 'x' data_type: TYPE_FP32 dims: 1 reshape { shape: [ ] } }",
        "input { name: 'x' data_type: TYPE_FP32 dims: [ 2, 4, -1, 6 ] reshape { shape: [ 8, -1, 1, 6 ] } }",
        "input { name: 'x' data_type: TYPE_STRING dims: [ -1 ] optional: true }",
        "input { name: 'x' data_type: TYPE_BF16 dims: [ 3, 2, 1 ] format: FORMAT_NCHW }",
    ],
)
def test_tensors_that_are_fine(tensors: str, tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", f'backend: "python" {tensors}')
    assert found(repository(tmp_path / "models", auto_complete=False).poll("m")).fault is None


NOT_THERE = [
    ("sequence_batching { }", "the sequence batcher (sequence_batching)"),
    (
        "sequence_batching { iterative_sequence: true state { input_name: 'a' output_name: 'b' } }",
        "the sequence batcher (sequence_batching)",
    ),
    ("model_repository_agents { agents { name: 'checksum' } }", "repository agents (model_repository_agents)"),
    ("batch_input { kind: BATCH_ELEMENT_COUNT target_name: 'x' }", "ragged batches (batch_input, batch_output)"),
]


@pytest.mark.parametrize(("extra", "what"), NOT_THERE)
def test_features_that_are_not_there_yet(extra: str, what: str, tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", f'backend: "python" {TENSORS} {extra}')
    fault = refused(found(repository(tmp_path / "models").poll("m")))
    assert (fault.kind, fault.message) == ("Unsupported", f"model 'm' uses {what}, which Conch does not have yet")


def test_iterative_sequences_need_no_batcher(tmp_path: Path) -> None:
    write_model(
        tmp_path / "models", "m", f'backend: "python" {TENSORS} sequence_batching {{ iterative_sequence: true }}'
    )
    assert found(repository(tmp_path / "models").poll("m")).fault is None


def test_ensembles_are_not_there_yet(tmp_path: Path) -> None:
    step = "step { model_name: 'x' input_map { key: 'a' value: 'IN' } output_map { key: 'b' value: 'OUT' } }"
    write_model(tmp_path / "models", "m", f"platform: 'ensemble' {TENSORS} ensemble_scheduling {{ {step} }}")
    fault = refused(found(repository(tmp_path / "models").poll("m")))
    assert fault.message == "model 'm' uses ensembles (ensemble_scheduling), which Conch does not have yet"


INSTANCES = [
    (
        "instance_group { kind: KIND_GPU }",
        (),
        "instance group m_0 of model m has kind KIND_GPU but no GPUs are available",
    ),
    (
        "instance_group { kind: KIND_CPU gpus: 0 }",
        (0,),
        "instance group m_0 of model m has kind KIND_CPU but specifies one or more GPUs",
    ),
    (
        "instance_group { kind: KIND_MODEL gpus: 0 }",
        (0,),
        "instance group m_0 of model m has kind KIND_MODEL but specifies one or more GPUs",
    ),
    (
        "instance_group { kind: KIND_GPU gpus: 5 }",
        (0, 1),
        "instance group m_0 of model m specifies invalid or unsupported gpu id 5. Available GPUs are: 0, 1",
    ),
    ("instance_group { count: 100000 }", (), "model m asks for 100000 instances, 4096 are allowed"),
]


@pytest.mark.parametrize(("group", "gpus", "reason"), INSTANCES)
def test_instance_groups_that_cannot_run_here(group: str, gpus: tuple[int, ...], reason: str, tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", f'backend: "python" {TENSORS} {group}')
    result = found(repository(tmp_path / "models", host=Host(gpus)).poll("m"))
    assert refused(result).message == reason
    assert not result.instances


def test_a_completion_may_not_change_the_scheduler(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", f'backend: "python" max_batch_size: 4 dynamic_batching {{ }} {TENSORS}')
    snapshot = found(repository(tmp_path / "models").poll("m"))
    completed = snapshot.config_json.replace('"dynamic_batching":', '"sequence_batching":{},"unused":')
    with pytest.raises(Exception, match="completed the configuration of 'm' to"):
        complete(snapshot, completed)
    with pytest.raises(Exception, match="Cannot update scheduling choice"):
        complete(snapshot, '{"sequence_batching":{}}')


def test_a_completion_may_not_change_anything_else(tmp_path: Path) -> None:
    write_model(
        tmp_path / "models", "m", f'backend: "python" {TENSORS} parameters {{ key: "k" value {{ string_value: "v" }} }}'
    )
    snapshot = found(repository(tmp_path / "models").poll("m"))
    text = complete(snapshot, snapshot.config_json.replace('"v"', '"w"').replace('"count":1', '"count":99'))
    assert text == snapshot.config_json


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("EXECUTION_TIMEOUT_S", "soon", "parameter EXECUTION_TIMEOUT_S must be seconds, more than 0, not 'soon' for m"),
        ("EXECUTION_TIMEOUT_S", "0", "parameter EXECUTION_TIMEOUT_S must be seconds, more than 0, not '0' for m"),
        ("MEMORY_LIMIT_MIB", "1.5", "parameter MEMORY_LIMIT_MIB must be a whole number of MiB, not '1.5' for m"),
        ("MEMORY_LIMIT_MIB", "-1", "parameter MEMORY_LIMIT_MIB must be a whole number of MiB, not '-1' for m"),
        ("IDEMPOTENT", "maybe", "parameter IDEMPOTENT must be true or false, not 'maybe' for m"),
        ("IDEMPOTENT", "False", ""),
        ("EXECUTION_TIMEOUT_S", "0.5", ""),
        ("LOAD_TIMEOUT_S", "5 min", "parameter LOAD_TIMEOUT_S must be seconds, more than 0, not '5 min' for m"),
        ("LOAD_TIMEOUT_S", "1800", ""),
        ("MEMORY_LIMIT_MIB", "512", ""),
    ],
)
def test_parameters(key: str, value: str, reason: str, tmp_path: Path) -> None:
    """The model is found, and its load fails."""
    extra = f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
    write_model(tmp_path / "models", "m", f'backend: "python" {TENSORS} {extra}')
    fault = found(repository(tmp_path / "models").poll("m")).fault
    assert fault == (Fault("InvalidArgument", reason) if reason else None)
