"""Calls over gRPC for the comparison with Triton, good and bad."""

import copy
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from conch.protos import load_service_pb2

pb = load_service_pb2()

SERVICE = "/inference.GRPCInferenceService/"
_BLOB = struct.pack("<16i", *range(16))
#: per field of InferParameter, values that a client may send
_PARAMETER_VALUES: dict[str, tuple[Any, ...]] = {
    "bool_param": (True,),
    "int64_param": (-1, 0, 1, 2**63 - 1),
    "string_param": ("", "x"),
    "double_param": (1.5,),
    "uint64_param": (1, 2**64 - 1),
}
_REQUEST_PARAMETERS = (
    *("priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output", "headers"),
    *("custom", "triton_x", "triton_enable_empty_final_response"),
)
_REGION_PARAMETERS = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
_CONTENTS: dict[str, tuple[Any, ...]] = {
    "bool_contents": (True,),
    "int_contents": (1, -1, 127, 128, 40000),
    "int64_contents": (1, 2**63 - 1),
    "uint_contents": (1, 255, 256, 70000),
    "uint64_contents": (1, 2**64 - 1),
    "fp32_contents": (1.5,),
    "fp64_contents": (1.5,),
    "bytes_contents": (b"abc",),
}
_LOAD_VALUES = (("bool_param", True), ("int64_param", 1), ("string_param", "x"), ("bytes_param", b"x"))
_LOG_VALUES = (("bool_param", True), ("uint32_param", 0), ("string_param", "default"), ("string_param", "x"))
_DATATYPES = (
    *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "BF16"),
    *("FP32", "FP64", "BYTES"),
)


class GrpcCase(NamedTuple):
    """``request``: a message, or bytes to send as they are. ``response``: the class of the answer's message."""

    name: str
    method: str
    request: Any
    response: Any


def infer(name: str, request: Any) -> GrpcCase:
    return GrpcCase(name, SERVICE + "ModelInfer", request, pb.ModelInferResponse)


def good() -> Any:
    request = pb.ModelInferRequest(model_name="simple")
    for name in ("INPUT0", "INPUT1"):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        request.raw_input_contents.append(_BLOB)
    return request


def typed(datatype: str, field: str, values: list[Any]) -> Any:
    request = pb.ModelInferRequest(model_name=f"echo_{datatype.lower()}")
    tensor = request.inputs.add(name="INPUT0", datatype=datatype, shape=[len(values)])
    getattr(tensor.contents, field).extend(values)
    return request


# ------------------------------------------------------------------------------------------------------------ inference


def _variants() -> Iterator[tuple[str, Any]]:
    """Each a change of one thing in a good request."""

    def change(name: str, **fields: Any) -> tuple[str, Any]:
        request = good()
        for field, value in fields.items():
            setattr(request, field, value)
        return name, request

    yield "good", good()
    yield change("id", id="abc")
    yield change("version 1", model_version="1")
    for version in ("2", "x", "-1", "0", "1x", "99999999999999999999"):
        yield change(f"version {version}", model_version=version)
    for model in ("", "nope", "a/b", "é"):
        yield change(f"model '{model}'", model_name=model)
    for name in ("", "OTHER", "INPUT1"):
        request = good()
        request.inputs[0].name = name
        yield f"input name '{name}'", request
    for datatype in ("", "INT31", "FP32", "BYTES", "TYPE_INT32", "int32"):
        request = good()
        request.inputs[0].datatype = datatype
        yield f"datatype '{datatype}'", request
    for shape in ([], [16], [1, 15], [1, 17], [2, 16], [9, 16], [0, 16], [-1, 16], [1, -16], [1, 16, 1], [2**31, 16]):
        request = good()
        request.inputs[0].shape[:] = shape
        yield f"shape {shape}", request
    for blobs in ([], [_BLOB], [_BLOB] * 3, [_BLOB, b""], [b"", _BLOB], [_BLOB, _BLOB[:-1]], [_BLOB + b"x", _BLOB]):
        request = good()
        request.raw_input_contents[:] = blobs
        yield f"raw contents of {[len(blob) for blob in blobs]} bytes", request
    request = good()
    del request.inputs[1]
    yield "an input missing", request
    request = good()
    request.inputs.add(name="INPUT2", datatype="INT32", shape=[1, 16])
    yield "an input too many", request
    request = good()
    request.inputs[0].contents.int_contents.extend(range(16))
    yield "contents and raw contents", request
    for outputs in (["OUTPUT0"], ["OUTPUT1", "OUTPUT0"], ["OTHER"], [""], ["OUTPUT0", "OUTPUT0"]):
        request = good()
        for name in outputs:
            request.outputs.add(name=name)
        yield f"outputs {outputs}", request
    yield "empty", pb.ModelInferRequest()
    yield "only a model", pb.ModelInferRequest(model_name="simple")


def _parameters() -> Iterator[tuple[str, Any]]:
    for field, values in _PARAMETER_VALUES.items():
        for value in values:
            for key in _REQUEST_PARAMETERS:
                request = good()
                setattr(request.parameters[key], field, value)
                yield f"parameter {key} {field} {value!r}", request
            for key in _REGION_PARAMETERS:
                request = good()
                setattr(request.inputs[0].parameters[key], field, value)
                yield f"input parameter {key} {field} {value!r}", request
                request = good()
                output = request.outputs.add(name="OUTPUT0")
                setattr(output.parameters[key], field, value)
                yield f"output parameter {key} {field} {value!r}", request
            for key in ("classification", "binary_data", "other"):
                request = good()
                output = request.outputs.add(name="OUTPUT0")
                setattr(output.parameters[key], field, value)
                yield f"output parameter {key} {field} {value!r}", request
    request = good()
    request.parameters["custom"].SetInParent()
    yield "parameter without a value", request


def _typed_contents() -> Iterator[tuple[str, Any]]:
    for datatype in _DATATYPES:
        for field, values in _CONTENTS.items():
            for value in values:
                yield f"{datatype} in {field} {value!r}", typed(datatype, field, [value])
    for count in (0, 15, 17):
        request = good()
        del request.raw_input_contents[:]
        for tensor in request.inputs:
            tensor.contents.int_contents.extend(range(count))
        yield f"{count} values in contents", request
    request = good()
    del request.raw_input_contents[:]
    request.inputs[0].contents.int_contents.extend(range(16))
    yield "contents for one of two", request
    request = typed("INT32", "int_contents", [1])
    request.inputs[0].contents.fp32_contents.append(1.0)
    yield "two kinds of contents", request


def _strings() -> Iterator[tuple[str, Any]]:
    for name, shape, data in (
        ("good", 2, b"\1\0\0\0a\2\0\0\0bc"),
        ("too few", 3, b"\1\0\0\0a\2\0\0\0bc"),
        ("too many", 1, b"\1\0\0\0a\2\0\0\0bc"),
        ("cut in the length", 2, b"\1\0\0\0a\2\0"),
        ("cut in the text", 2, b"\1\0\0\0a\2\0\0\0b"),
        ("of 4 GiB", 1, b"\xff\xff\xff\xffa"),
        ("none", 0, b""),
    ):
        request = pb.ModelInferRequest(model_name="echo_bytes")
        request.inputs.add(name="INPUT0", datatype="BYTES", shape=[shape])
        request.raw_input_contents.append(data)
        yield f"strings {name}", request


def inference_cases() -> Iterator[GrpcCase]:
    for name, request in (*_variants(), *_parameters(), *_typed_contents(), *_strings()):
        yield infer(name, request)
    encoded = good().SerializeToString()
    for name, payload in (
        *(("no bytes", b""), ("garbage", b"\xff" * 20), ("cut off", encoded[:-5]), ("wrong wire type", b"\x08\x01")),
        *(("unknown field", encoded + b"\x9a\x06\x01x"), ("invalid UTF-8 in a name", b"\x0a\x02\xff\xfe")),
    ):
        yield infer(f"payload: {name}", payload)


# ------------------------------------------------------------------------------------------------------ everything else


def rpc_cases() -> Iterator[GrpcCase]:
    def rpc(name: str, request: Any, text: str = "") -> GrpcCase:
        return GrpcCase(f"{name} {text}".strip(), SERVICE + name, request, getattr(pb, f"{name}Response"))

    yield rpc("ServerLive", pb.ServerLiveRequest())
    yield rpc("ServerReady", pb.ServerReadyRequest())
    yield rpc("ServerMetadata", pb.ServerMetadataRequest())
    for model, version in (("simple", ""), ("simple", "1"), ("simple", "7"), ("simple", "x"), ("nope", ""), ("", "")):
        text = f"of '{model}' version '{version}'"
        for kind in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
            if kind == "ModelStatistics" and not model:
                continue  # of every model: they have served different requests
            yield rpc(kind, getattr(pb, f"{kind}Request")(name=model, version=version), text)
    for model in ("scores", "matrix", "obey"):
        yield rpc("ModelConfig", pb.ModelConfigRequest(name=model), f"of '{model}'")
        yield rpc("ModelMetadata", pb.ModelMetadataRequest(name=model), f"of '{model}'")
    yield rpc("RepositoryIndex", pb.RepositoryIndexRequest())
    yield rpc("RepositoryIndex", pb.RepositoryIndexRequest(ready=True), "ready")
    yield rpc("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r"), "of a repository")
    for kind in ("Load", "Unload"):
        request_class = getattr(pb, f"RepositoryModel{kind}Request")
        for model in ("simple", "nope", ""):
            yield rpc(f"RepositoryModel{kind}", request_class(model_name=model), f"of '{model}'")
        yield rpc(f"RepositoryModel{kind}", request_class(repository_name="r", model_name="simple"), "in a repository")
        for key in ("config", "file:1/model.py", "unload_dependents", "other"):
            for field, value in (
                ("bool_param", True),
                ("int64_param", 1),
                ("string_param", "x"),
                ("bytes_param", b"x"),
            ):
                request = request_class(model_name="simple")
                setattr(request.parameters[key], field, value)
                yield rpc(f"RepositoryModel{kind}", request, f"with {key} {field}")
    for kind in ("System", "Cuda"):
        status = getattr(pb, f"{kind}SharedMemoryStatusRequest")
        unregister = getattr(pb, f"{kind}SharedMemoryUnregisterRequest")
        for name in ("", "differential"):
            yield rpc(f"{kind}SharedMemoryStatus", status(name=name), f"of '{name}'")
            yield rpc(f"{kind}SharedMemoryUnregister", unregister(name=name), f"of '{name}'")
    base = pb.SystemSharedMemoryRegisterRequest(name="differential", key="/differential_absent", byte_size=64)
    for field, values in (
        ("name", ("", "differential")),
        ("key", ("", "/", "a/b", "x", "/triton_python_backend_shm_region_1")),
        ("offset", (1, 2**63, 2**64 - 1)),
        ("byte_size", (0, 2**63, 2**64 - 1)),
    ):
        for value in values:
            request = copy.deepcopy(base)
            setattr(request, field, value)
            yield rpc("SystemSharedMemoryRegister", request, f"{field} {value!r}")
    for handle in (b"", bytes(63), bytes(64), bytes(65)):
        request = pb.CudaSharedMemoryRegisterRequest(name="differential", raw_handle=handle, byte_size=64)
        yield rpc("CudaSharedMemoryRegister", request, f"handle of {len(handle)} bytes")
    yield from _settings(rpc)
    yield GrpcCase("Health", "/grpc.health.v1.Health/Check", b"", pb.ServerLiveResponse)
    yield GrpcCase("Health of a service", "/grpc.health.v1.Health/Check", b"\x0a\x01x", pb.ServerLiveResponse)
    yield GrpcCase("unknown method", SERVICE + "Nope", b"", pb.ServerLiveResponse)
    yield GrpcCase("unknown service", "/nope/Nope", b"", pb.ServerLiveResponse)


def _settings(rpc: Any) -> Iterator[GrpcCase]:
    yield rpc("LogSettings", pb.LogSettingsRequest(), "read")
    keys = ("log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format", "unknown")
    for key in keys:
        for field, value in (
            ("bool_param", True),
            ("uint32_param", 0),
            ("string_param", "default"),
            ("string_param", "x"),
        ):
            request = pb.LogSettingsRequest()
            setattr(request.settings[key], field, value)
            yield rpc("LogSettings", request, f"{key} {field} {value!r}")
    for model in ("", "simple", "nope"):
        yield rpc("TraceSetting", pb.TraceSettingRequest(model_name=model), f"read of '{model}'")
        for key in ("trace_file", "trace_level", "trace_rate", "trace_count", "log_frequency", "trace_mode", "unknown"):
            for values in ([], ["1"], ["x"], ["-1"], ["OFF"], ["TIMESTAMPS"], ["1", "2"]):
                request = pb.TraceSettingRequest(model_name=model)
                request.settings[key].value.extend(values)
                request.settings[key].SetInParent()
                yield rpc("TraceSetting", request, f"of '{model}' {key} {values}")
