"""Bodies both ways against the official client's own encoder and decoder."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from conch.requester.inference import OutputTensor
from conch.tensors import NUMPY_DTYPES, pack
from frontends.http.request_body import decode
from frontends.http.request_outputs import OutputFormat
from frontends.http.response_body import encode
from tests.frontends.http.codecs import (
    ANY_BINARY,
    ANY_JSON,
    LIMIT,
    NO_REGIONS,
    NUMERIC,
    SIMPLE,
    json_nbytes,
    result,
    whole,
)

#: JSON cannot say FP16
WAYS = [(name, binary) for name in (*NUMERIC, "FP16", "BYTES") for binary in (False, True) if name != "FP16" or binary]


def arrays(datatype: str) -> st.SearchStrategy[Any]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
    if datatype == "BYTES":
        return hnp.arrays(
            np.object_, shapes, elements=st.text(st.characters(codec="utf-8"), max_size=20).map(str.encode)
        )
    return hnp.arrays(NUMPY_DTYPES[datatype], shapes)


@pytest.mark.parametrize(("datatype", "binary"), WAYS)
def test_client_requests(datatype: str, binary: bool) -> None:
    """What tritonclient sends, we read as the same tensors."""

    @settings(max_examples=40, deadline=None)
    @given(first=arrays(datatype), second=arrays(datatype))
    def check(first: Any, second: Any) -> None:
        inputs = []
        for name, array in (("INPUT0", first), ("INPUT1", second)):
            tensor = InferInput(name, list(array.shape), datatype)
            try:
                tensor.set_data_from_numpy(array, binary_data=binary)
            except Exception:
                return  # FP16 and NaN are refused by the client
            inputs.append(tensor)
        outputs = [InferRequestedOutput("OUTPUT0", binary_data=binary), InferRequestedOutput("OUTPUT1", class_count=2)]
        body, nbytes = InferenceServerClient.generate_request_body(inputs, outputs=outputs, request_id="7")
        call, formats = decode(body, nbytes if nbytes is not None else len(body), SIMPLE, NO_REGIONS, LIMIT)
        assert call.client_id == "7"
        assert [tensor.name for tensor in call.inputs] == ["INPUT0", "INPUT1"]
        assert call.outputs == ("OUTPUT0", "OUTPUT1")
        assert formats.listed == {"OUTPUT0": OutputFormat(binary, 0), "OUTPUT1": OutputFormat(True, 2)}
        for tensor, array in zip(call.inputs, (first, second), strict=True):
            assert tensor.datatype == datatype
            assert tensor.shape == array.shape
            wire = pack(array.reshape(-1).tolist()) if datatype == "BYTES" else array.tobytes()
            if np.issubdtype(array.dtype, np.floating) and not binary:  # JSON's NaN has no sign
                found = np.frombuffer(tensor.data, array.dtype) if len(tensor.data) else array.reshape(-1)
                assert np.array_equal(found, array.reshape(-1), equal_nan=True)
            else:
                assert bytes(tensor.data) == wire

    check()


@pytest.mark.parametrize(("datatype", "binary"), WAYS)
def test_client_responses(datatype: str, binary: bool) -> None:
    """What we answer, tritonclient reads as the same arrays."""

    @settings(max_examples=40, deadline=None)
    @given(first=arrays(datatype), second=arrays(datatype), name=st.text(st.characters(codec="utf-8"), min_size=1))
    def check(first: Any, second: Any, name: str) -> None:
        outputs = []
        for output, array in (("OUTPUT0", first), (name, second)):
            wire = pack(array.reshape(-1).tolist()) if datatype == "BYTES" else array.tobytes()
            outputs.append(OutputTensor(output, datatype, array.shape, wire))
        reply = encode(result(*outputs, id="7"), ANY_BINARY if binary else ANY_JSON, SIMPLE)
        shown = InferenceServerClient.parse_response_body(whole(reply), header_length=json_nbytes(reply))
        assert shown.get_response()["id"] == "7"
        for output, array in (("OUTPUT0", first), (name, second)):
            if output == "OUTPUT0" and name == "OUTPUT0":
                continue
            found = shown.as_numpy(output)
            expected = array
            if datatype == "BYTES" and not binary:
                found = np.array([text.encode() for text in found.reshape(-1)], np.object_).reshape(found.shape)
            if array.dtype.kind == "f":
                assert found.tobytes() == expected.tobytes() or np.array_equal(found, expected, equal_nan=True)
            else:
                assert np.array_equal(found, expected)
            assert found.shape == array.shape

    check()
