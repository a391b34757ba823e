"""Every refusal with Triton's text, and nothing but refusals for whatever else a client may send."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.errors import ClientError, InvalidArgument
from conch.requester.inference import InferenceCall, RegionWindow, TensorInput
from conch.requester.models import ReadyModel
from conch.requester.validation import Checked, _refuse, validate
from tests.frontends.samples import int32, model, simple_call

A = {"name": "A", "data_type": "TYPE_FP32", "dims": [-1, 2]}
B = {"name": "B", "data_type": "TYPE_STRING", "dims": [2], "optional": True}
RAGGED = {"name": "A", "data_type": "TYPE_FP32", "dims": [-1], "allow_ragged_batch": True}


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def text_of(model: ReadyModel, call: InferenceCall) -> str:
    with pytest.raises(InvalidArgument) as raised:
        validate(model, call)
    message = raised.value.message
    prefix = f"[request id: {call.client_id or '<id_unknown>'}] "
    assert message.startswith(prefix) or message.startswith("unexpected inference ")
    return message.removeprefix(prefix)


class TestGood:
    def test_fixed_shapes(self) -> None:
        assert validate(model(), simple_call()) == Checked(1, "")
        call = InferenceCall([int32("INPUT1", 8, 16), int32("INPUT0", 8, 16)], ("OUTPUT1",))
        assert validate(model(), call) == Checked(8, "")

    def test_without_batching(self) -> None:
        call = InferenceCall([int32("INPUT0", 16), int32("INPUT1", 16)])
        assert validate(model(max_batch_size=0), call) == Checked(1, "")

    def test_shape_key_tells_variable_shapes_and_optional_inputs_apart(self) -> None:
        both = model(input=[A, B])
        shapes = [(1, 3, 2), (1, 4, 2), (1, 0, 2)]
        calls = [InferenceCall([TensorInput("A", "FP32", shape, bytes(8 * shape[1]))]) for shape in shapes]
        keys = [validate(both, call).shape_key for call in calls]
        strings = TensorInput("B", "BYTES", (1, 2), packed(b"x", b""))
        calls = [InferenceCall([strings, *call.inputs]) for call in calls]
        keys += [validate(both, call).shape_key for call in calls]
        assert len(set(keys)) == 6
        assert validate(both, InferenceCall([*reversed(calls[0].inputs)])).shape_key == keys[3]

    @pytest.mark.parametrize("fields", [{"input": [RAGGED]}, {"input": [A], "max_batch_size": 1}])
    def test_shape_key_is_empty_where_shapes_do_not_matter(self, fields: dict[str, Any]) -> None:
        dims = (1, 3) if fields["input"][0] is RAGGED else (1, 3, 2)
        call = InferenceCall([TensorInput("A", "FP32", dims, bytes(12 if len(dims) == 2 else 24))])
        assert validate(model(**fields), call) == Checked(1, "")

    def test_views_count_as_bytes(self) -> None:
        data = memoryview(bytearray(200))[8:72]
        call = InferenceCall([TensorInput(name, "INT32", (1, 16), data) for name in ("INPUT0", "INPUT1")])
        assert validate(model(), call).batch_size == 1

    def test_no_inputs(self) -> None:
        assert validate(model(input=[]), InferenceCall([])) == Checked(1, "")


class TestRefused:
    def test_duplicates(self) -> None:
        twice = InferenceCall([int32("INPUT0", 1, 16), int32("INPUT0", 1, 16)])
        assert text_of(model(), twice) == "input 'INPUT0' already exists in request"
        call = simple_call(outputs=("OUTPUT0", "OUTPUT0"), client_id="7")
        assert text_of(model(), call) == "output 'OUTPUT0' already exists in request"

    def test_outputs(self) -> None:
        call = simple_call(outputs=("OUTPUT0", "X"))
        assert text_of(model(), call) == "unexpected inference output 'X' for model 'simple'"

    def test_missing_inputs(self) -> None:
        assert text_of(model(), InferenceCall([int32("INPUT0", 1, 16)])) == (
            "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT0'], but missing required "
            "input(s) ['INPUT1']. Please provide all required input(s)."
        )
        assert text_of(model(), InferenceCall([])).startswith(
            "expected 2 inputs but got 0 inputs for model 'simple'. Got input(s) [], but missing required input(s) "
            "['INPUT0','INPUT1']."
        )

    def test_missing_inputs_where_some_are_optional(self) -> None:
        strings = TensorInput("B", "BYTES", (1, 2), packed(b"x", b""))
        assert text_of(model(input=[A, B]), InferenceCall([])).startswith(
            "expected number of inputs between 1 and 2 but got 0 inputs for model 'simple'. Got input(s) []"
        )
        assert "missing required input(s) ['A']" in text_of(model(input=[A, B]), InferenceCall([strings]))

    def test_unknown_input(self) -> None:
        call = InferenceCall([int32("INPUT0", 1, 16), int32("X", 1, 16)])
        assert text_of(model(), call) == "unexpected inference input 'X' for model 'simple'"
        assert text_of(model(max_batch_size=0), call).startswith("unexpected shape for input 'INPUT0'")

    def test_datatype(self) -> None:
        call = InferenceCall([int32("INPUT0", 1, 16), TensorInput("INPUT1", "FP32", (1, 16), bytes(64))])
        assert text_of(model(), call) == (
            "inference input 'INPUT1' data-type is 'FP32', but model 'simple' expects 'INT32'"
        )

    def test_batch_size(self) -> None:
        call = InferenceCall([int32("INPUT0", 9, 16), int32("INPUT1", 9, 16)])
        assert text_of(model(), call) == "inference request batch-size must be <= 8 for 'simple'"
        call = InferenceCall([int32("INPUT0", 0, 16), int32("INPUT1", 0, 16)])
        assert text_of(model(), call) == "inference request batch-size must be >= 1 for 'simple'"
        call = InferenceCall([int32("INPUT0", 1, 16), int32("INPUT1", 2, 16)])
        assert text_of(model(), call) == "input 'INPUT1' batch size does not match other inputs for 'simple'"
        call = InferenceCall([int32("INPUT0"), int32("INPUT1", 2, 16)])
        assert text_of(model(), call) == "input 'INPUT0' has no shape but model requires batch dimension for 'simple'"

    def test_shape(self) -> None:
        call = InferenceCall([int32("INPUT0", 1, 15), int32("INPUT1", 1, 16)])
        text = text_of(model(), call)
        assert text.startswith(
            "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [1,15]. NOTE: Setting a "
            "non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input"
        )
        call = InferenceCall([int32("INPUT0", 1, 16), int32("INPUT1", 16)])
        text = text_of(model(max_batch_size=0), call)
        assert text == "unexpected shape for input 'INPUT0' for model 'simple'. Expected [16], got [1,16]."

    def test_negative_dimension(self) -> None:
        call = InferenceCall([TensorInput("A", "FP32", (1, -1, 2), b"")])
        assert text_of(model(input=[A]), call) == (
            "All input dimensions should be specified for input 'A' for model 'simple', got [1,-1,2]"
        )

    @pytest.mark.parametrize(
        ("shape", "text"),
        [
            ((1, 2**62, 2), "causes total element count to exceed maximum size of 9223372036854775807"),
            ((1, 2**64, 2), "causes total element count to exceed maximum size of"),
            ((0, 2**31, 0), "causes total element count to exceed maximum size of"),
            ((2**31 - 1, 2**31 - 1, 2), "byte size overflow for input 'A'"),
        ],
    )
    def test_overflow(self, shape: tuple[int, ...], text: str) -> None:
        wide = {"name": "A", "data_type": "TYPE_FP32", "dims": [-1, -1, -1]}
        call = InferenceCall([TensorInput("A", "FP32", shape, b"")])
        assert text in text_of(model(input=[wide], max_batch_size=0), call)

    def test_byte_size(self) -> None:
        call = InferenceCall([int32("INPUT0", 2, 16, nbytes=129), int32("INPUT1", 2, 16)])
        assert (
            text_of(model(), call)
            == "input byte size mismatch for input 'INPUT0' for model 'simple'. Expected 128, got 129"
        )

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            (packed(b"a"), "expected 2 string elements for inference input 'B' for model 'simple', got 1"),
            (b"", "expected 2 string elements for inference input 'B' for model 'simple', got 0"),
            (
                packed(b"a", b"", b"c"),
                "unexpected number of string elements 3 for inference input 'B' for model 'simple', expecting 2",
            ),
            (
                packed(b"a", b"b")[:-3],
                "incomplete string length indicator for inference input 'B' for model 'simple', expecting 4 bytes but "
                "only 2 bytes available",
            ),
            (
                packed(b"a", b"bcd")[:-1],
                "incomplete string data for inference input 'B' for model 'simple', expecting string of length 3 but "
                "only 2 bytes available",
            ),
            (
                b"\xff\xff\xff\xff" + bytes(20),
                "incomplete string data for inference input 'B' for model 'simple', expecting string of length "
                "4294967295 but only 20 bytes available",
            ),
        ],
    )
    def test_bytes_elements(self, data: bytes, text: str) -> None:
        call = InferenceCall([TensorInput("B", "BYTES", (1, 2), data)])
        assert text_of(model(input=[B]), call).startswith(text)


DIMS = st.one_of(
    st.integers(-2, 20), st.sampled_from([16, 0, 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**40])
)
SHAPES = st.lists(DIMS, max_size=5).map(tuple) | st.just((1, 16)) | st.just((16,)) | st.just((1, 3, 2))
NAMES = st.sampled_from(["INPUT0", "INPUT1", "A", "B", "", "X\0"])
DATATYPES = st.sampled_from(["INT32", "FP32", "BYTES", "BF16", "", "TYPE_INT32", "FP128"])
DATA = (
    st.binary(max_size=80)
    | st.just(bytes(64))
    | st.just(bytes(24))
    | st.just(packed(b"a", b""))
    | st.just(b"\xff" * 64)
)
TENSORS = st.builds(TensorInput, NAMES, DATATYPES, SHAPES, DATA)
CALLS = st.builds(
    InferenceCall,
    st.lists(TENSORS, max_size=4),
    st.lists(st.sampled_from(["OUTPUT0", "OUTPUT1", "X", ""]), max_size=3).map(tuple),
    st.text(max_size=3),
)
MODELS = [
    model(),
    model(max_batch_size=0),
    model(input=[A, B]),
    model(input=[A, B], max_batch_size=0),
    model(input=[RAGGED]),
    model(input=[{"name": "A", "data_type": "TYPE_STRING", "dims": [-1]}]),
    model(input=[{"name": "A", "data_type": "TYPE_FP32", "dims": []}]),
]


@given(st.sampled_from(MODELS), CALLS)
def test_garbage_is_refused_and_what_is_accepted_fits(model: ReadyModel, call: InferenceCall) -> None:
    try:
        checked = validate(model, call)
    except ClientError:
        return
    assert 1 <= checked.batch_size <= max(model.max_batch_size, 1)
    for tensor in call.inputs:
        elements = 1
        for dim in tensor.shape:
            assert dim >= 0
            elements *= dim
        sizes = {"INT32": 4, "FP32": 4}
        if tensor.datatype in sizes:
            assert len(tensor.data) == elements * sizes[tensor.datatype]


@given(st.sampled_from(MODELS), CALLS)
def test_quick_and_thorough_checks_agree(model: ReadyModel, call: InferenceCall) -> None:
    with pytest.raises(InvalidArgument) as thorough:
        _refuse(model, call)
    found_nothing = thorough.value.message.endswith(f"the request is invalid for model '{model.name}'")
    try:
        validate(model, call)
    except InvalidArgument:
        assert not found_nothing
    else:
        assert found_nothing


class TestRegions:
    """Inputs and outputs in a client's memory, where only the worker looks."""

    def in_region(self, name: str, nbytes: int, *shape: int, datatype: str = "INT32") -> TensorInput:
        return TensorInput(name, datatype, shape, b"", RegionWindow("mine", 7, 0, nbytes))

    def test_the_declared_size_must_be_that_of_the_shape(self) -> None:
        good = InferenceCall([self.in_region("INPUT0", 128, 2, 16), int32("INPUT1", 2, 16)])
        assert validate(model(), good) == Checked(2, "", elsewhere=True)
        for nbytes in (0, 127, 129, 2**63):
            bad = InferenceCall([self.in_region("INPUT0", nbytes, 2, 16), int32("INPUT1", 2, 16)])
            assert text_of(model(), bad) == (
                f"input byte size mismatch for input 'INPUT0' for model 'simple'. Expected 128, got {nbytes}"
            )

    def test_variable_shapes(self) -> None:
        ragged = model(input=[A])
        good = InferenceCall([self.in_region("A", 24, 1, 3, 2, datatype="FP32")])
        assert validate(ragged, good) == Checked(1, "3", elsewhere=True)
        bad = InferenceCall([self.in_region("A", 20, 1, 3, 2, datatype="FP32")])
        assert "Expected 24, got 20" in text_of(ragged, bad)
        none = InferenceCall([self.in_region("A", 0, 1, 0, 2, datatype="FP32")])
        assert validate(ragged, none) == Checked(1, "0", elsewhere=True)

    def test_bytes_are_checked_by_the_worker(self) -> None:
        strings = model(input=[{"name": "B", "data_type": "TYPE_STRING", "dims": [2]}])
        for nbytes in (0, 3, 1000):
            call = InferenceCall([self.in_region("B", nbytes, 1, 2, datatype="BYTES")])
            assert validate(strings, call) == Checked(1, "", elsewhere=True)
        assert "unexpected shape" in text_of(
            strings, InferenceCall([self.in_region("B", 1000, 1, 3, datatype="BYTES")])
        )

    def test_targets_are_for_outputs_that_were_asked_for(self) -> None:
        window = RegionWindow("mine", 7, 0, 64)
        inputs = simple_call().inputs
        for outputs in ((), ("OUTPUT0",), ("OUTPUT1", "OUTPUT0")):
            validate(model(), InferenceCall(inputs, outputs, targets={"OUTPUT0": window}))
        for outputs, name in (((), "OUTPUT9"), (("OUTPUT1",), "OUTPUT0")):
            call = InferenceCall(inputs, outputs, targets={name: window})
            assert text_of(model(), call) == f"unexpected inference output '{name}' for model 'simple'"


@pytest.mark.timeout(10)
def test_very_many_outputs_in_regions() -> None:
    """What takes a time that is the square of their number holds everybody up for a minute."""
    names = tuple(f"n{i}" for i in range(100_000))
    call = InferenceCall([int32("INPUT0", 1, 16), int32("INPUT1", 1, 16)], names)
    call.targets = dict.fromkeys(names, RegionWindow("r", 1, 0, 64))
    assert text_of(model(), call) == "unexpected inference output 'n0' for model 'simple'"
