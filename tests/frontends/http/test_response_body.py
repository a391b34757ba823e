"""Inference responses: classification, and memory that is borrowed."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conch.errors import InvalidArgument
from conch.requester.inference import InferenceResult, OutputTensor
from frontends.http.request_outputs import JSON_FORMAT, OutputFormat, OutputFormats
from frontends.http.response_body import encode
from tests.frontends.http.codecs import (
    ANY_BINARY,
    ANY_JSON,
    SIMPLE,
    model,
    result,
)
from tests.frontends.http.support import config


def classes(values: Any, count: int, labels: tuple[str, ...] = (), batched: bool = True) -> tuple[list[int], list[str]]:
    array = np.asarray(values)
    datatype = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64", np.dtype(np.float64): "FP64"}[array.dtype]
    shown = model(config("c", datatype, [-1], max_batch_size=8 if batched else 0), {"O": labels})
    output = OutputTensor("O", datatype, array.shape, array.tobytes())
    reply = encode(result(output), OutputFormats(JSON_FORMAT, {"O": OutputFormat(False, count)}), shown)
    found = json.loads(reply.body)["outputs"][0]
    assert found["datatype"] == "BYTES"
    return found["shape"], found["data"]


def test_classification() -> None:
    scores = np.array([[0.1, 0.5, 0.25], [3.0, -1.0, 3.0]], np.float32)
    assert classes(scores, 2, ("cat", "dog")) == (
        [2, 2],
        ["0.500000:1:dog", "0.250000:2", "3.000000:0:cat", "3.000000:2"],
    )
    assert classes(scores, 9) == (
        [2, 3],
        ["0.500000:1", "0.250000:2", "0.100000:0", "3.000000:0", "3.000000:2", "-1.000000:1"],
    )
    assert classes(scores.reshape(2, 3, 1), 1) == ([2, 1], ["0.500000:1", "3.000000:0"])
    assert classes(scores, 2, batched=False) == ([2], ["3.000000:3", "3.000000:5"])
    assert classes(np.array([[5, -7]]), 2, ("a", "")) == ([1, 2], ["5:0:a", "-7:1"])


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.sampled_from((0.0, 1.0, 2.5, -1))
    ),
    st.integers(1, 45),
)
def test_classification_order(values: Any, count: int) -> None:
    shape, texts = classes(values, count)
    shown = min(count, values.shape[1])
    assert shape == [values.shape[0], shown]
    for row, item in enumerate(values):
        best = sorted(range(len(item)), key=lambda i: (-item[i], i))[:shown]
        assert texts[row * shown : (row + 1) * shown] == [f"{item[i]:f}:{i}" for i in best]


@pytest.mark.parametrize("datatype", ["BYTES", "BOOL", "FP16", "BF16"])
def test_classification_of_unsupported_types(datatype: str) -> None:
    shown = model(config("c", datatype, [1]))
    with pytest.raises(
        InvalidArgument, match=f"class result not available for output due to unsupported type '{datatype}'"
    ):
        encode(
            result(OutputTensor("O", datatype, (1,), b"\0\0")),
            OutputFormats(JSON_FORMAT, {"O": OutputFormat(True, 1)}),
            shown,
        )


def test_classification_of_too_much() -> None:
    with pytest.raises(InvalidArgument, match="classification output tensor too large"):
        classes(np.zeros((1, 1_000_001), np.float32), 1)
    assert classes(np.zeros((1, 1_000_000), np.float32), 1) == ([1, 1], ["0.000000:0"])


def test_what_is_borrowed_is_given_back_once() -> None:
    given_back: list[int] = []

    def borrowed(nbytes: int) -> InferenceResult:
        view = memoryview(bytearray(nbytes)).toreadonly()
        return result(OutputTensor("O", "INT8", (nbytes,), view), give_back=lambda: given_back.append(1))

    reply = encode(borrowed(100), ANY_JSON, SIMPLE)
    assert (len(given_back), reply.views, reply.release) == (1, (), None)
    reply = encode(borrowed(65536), ANY_BINARY, SIMPLE)
    assert (len(given_back), reply.views, reply.release) == (2, (), None)
    assert reply.body.endswith(bytes(65536))
    reply = encode(borrowed(65537), ANY_BINARY, SIMPLE)
    assert len(given_back) == 2 and len(reply.views) == 1 and reply.release is not None
    reply.release()
    reply.release()
    assert len(given_back) == 3
