"""The body of an inference response: JSON, and blobs for the outputs that the client wants as such."""

from math import prod
from typing import Any, Final

import orjson

from conch.messages import Parameter
from conch.requester.inference import InferenceResult
from conch.requester.models import ReadyModel
from frontends.classification import classify
from frontends.http.exchange import BINARY_TYPE, JSON_TYPE, Reply
from frontends.http.request_outputs import OutputFormats
from frontends.http.tensor_json import dumps, from_wire

_BINARY_HEADERS: Final = BINARY_TYPE + b"Inference-Header-Content-Length: %d\r\n"
#: blobs up to this size in all are joined with the JSON
_JOIN_NBYTES: Final = 65536


def encode(result: InferenceResult, formats: OutputFormats, model: ReadyModel) -> Reply:
    """200 with ``result``. The reply's ``release`` is the result's where it borrows from it; otherwise the result has
    been released when this returns. Raises ``ConchError`` for an output that cannot be shown as asked."""
    blobs: list[bytes | memoryview] = []
    outputs: list[dict[str, Any]] = []
    default, listed = formats
    for output in result.outputs:
        if output.region is not None:
            outputs.append({"name": output.name, "datatype": output.datatype, "shape": output.shape})
            continue
        wanted = listed.get(output.name, default) if listed else default
        if wanted.classes:
            labels = model.labels.get(output.name, ())
            output = classify(output, wanted.classes, model.max_batch_size > 0, labels)
        name, shape, data = output.name, output.shape, output.data
        if wanted.binary:
            nbytes = len(data)
            outputs.append(
                {"name": name, "datatype": output.datatype, "shape": shape, "parameters": {"binary_data_size": nbytes}}
            )
            if nbytes:
                blobs.append(data)
            continue
        values = from_wire(name, output.datatype, data, prod(shape))
        outputs.append({"name": name, "datatype": output.datatype, "shape": shape, "data": values})
    head: dict[str, Any] = {"id": result.client_id} if result.client_id else {}
    head["model_name"] = result.model_name
    head["model_version"] = str(result.model_version)
    if result.parameters:
        head["parameters"] = result.parameters
    head["outputs"] = outputs
    text = orjson.dumps(head)
    if b"null" in text:
        text = _dump_slowly(result, outputs)
    if not blobs:
        result.release()
        return Reply(200, JSON_TYPE, text)
    headers = _BINARY_HEADERS % len(text)
    if not result.borrowed or sum(map(len, blobs)) <= _JOIN_NBYTES:
        reply = Reply(200, headers, b"".join((text, *blobs)))
        result.release()
        return reply
    return Reply(200, headers, text, tuple(map(memoryview, blobs)), result.release)


def _dump_slowly(result: InferenceResult, outputs: list[dict[str, Any]]) -> bytes:
    """As ``orjson`` writes it, but with Triton's NaN and Infinity where it writes null."""
    parts = []
    for output in outputs:
        shown = orjson.dumps({key: value for key, value in output.items() if key != "data"})
        if "data" in output:
            shown = b'%b,"data":%b}' % (shown[:-1], dumps(output["data"]))
        parts.append(shown)
    members = []
    if result.client_id:
        members.append(b'"id":' + orjson.dumps(result.client_id))
    members.append(b'"model_name":' + orjson.dumps(result.model_name))
    members.append(b'"model_version":' + orjson.dumps(str(result.model_version)))
    if result.parameters:
        members.append(b'"parameters":' + _dump_parameters(result.parameters))
    members.append(b'"outputs":[' + b",".join(parts) + b"]")
    return b"{" + b",".join(members) + b"}"


def _dump_parameters(parameters: dict[str, Parameter]) -> bytes:
    return b"{" + b",".join(orjson.dumps(key) + b":" + dumps([value])[1:-1] for key, value in parameters.items()) + b"}"
