"""Log and trace settings, and memory that clients register."""

from typing import Any

import pytest

from conch.errors import AlreadyExists
from conch.messages import (
    LogSettings,
    Region,
    RegionTable,
    RegisterCudaRegion,
    RegisterRegion,
    TraceSettings,
    UnregisterRegions,
    UpdateLogSettings,
    UpdateTraceSettings,
)
from tests.frontends.grpc.support import Frontend, pb, refusal

DISABLED = (
    "UNIMPLEMENTED",
    "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.",
)


def log_request(name: str, field: str, value: Any) -> Any:
    request = pb.LogSettingsRequest()
    setattr(request.settings[name], field, value)
    return request


def shown_log(response: Any) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in response.settings.items()}


def test_log_settings(frontend: Frontend) -> None:
    default = {
        "log_file": "", "log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0,
        "log_format": "default",
    }  # fmt: skip
    count = len(frontend.requester.messages)
    assert shown_log(frontend.call("LogSettings")) == default
    assert shown_log(frontend.call("LogSettings", log_request("other", "bool_param", True))) == default
    assert len(frontend.requester.messages) == count
    request = pb.LogSettingsRequest()
    request.settings["log_info"].bool_param = False
    request.settings["log_verbose_level"].uint32_param = 2**32 - 1
    request.settings["log_format"].string_param = "ISO8601"
    frontend.requester.answers.append(LogSettings(info=False, verbose_level=3, format="ISO8601"))
    assert shown_log(frontend.call("LogSettings", request)) == {
        **default,
        "log_info": False,
        "log_verbose_level": 3,
        "log_format": "ISO8601",
    }
    changes: dict[str, bool | int | str] = {"info": False, "verbose_level": 2**31 - 1, "format": "ISO8601"}
    assert frontend.requester.messages[-1] == UpdateLogSettings(0, changes)


@pytest.mark.parametrize(
    ("name", "field", "value", "expected"),
    [
        (
            "log_file",
            "string_param",
            "/tmp/x",
            ("UNIMPLEMENTED", "log file location can not be updated through network protocol"),
        ),
        ("log_info", "string_param", "x", ("INVALID_ARGUMENT", "expect boolean for 'log_info'")),
        ("log_verbose_level", "bool_param", True, ("INVALID_ARGUMENT", "expect int32 for 'log_verbose_level'")),
        ("log_format", "bool_param", True, ("INVALID_ARGUMENT", "expect string for 'log_format'")),
    ],
)
def test_log_settings_that_are_refused(
    frontend: Frontend, name: str, field: str, value: Any, expected: tuple[str, str]
) -> None:
    assert refusal(frontend.call, "LogSettings", log_request(name, field, value)) == expected


def trace_request(model: str = "", **settings: tuple[str, ...]) -> Any:
    request = pb.TraceSettingRequest(model_name=model)
    for name, values in settings.items():
        request.settings[name].value.extend(values)
    return request


def shown_trace(response: Any) -> dict[str, list[str]]:
    return {name: list(setting.value) for name, setting in response.settings.items()}


def test_trace_settings(frontend: Frontend) -> None:
    default = {
        "trace_level": ["OFF"], "trace_rate": ["1000"], "trace_count": ["-1"], "log_frequency": ["0"],
        "trace_file": [""], "trace_mode": ["triton"],
    }  # fmt: skip
    assert shown_trace(frontend.call("TraceSetting")) == default
    assert shown_trace(frontend.call("TraceSetting", trace_request("simple", other=("x",)))) == default
    request = trace_request("simple", trace_level=("TIMESTAMPS", "TENSORS"), trace_rate=())
    request.settings["trace_rate"].SetInParent()
    frontend.requester.answers.append(TraceSettings(("TIMESTAMPS", "TENSORS")))
    shown = shown_trace(frontend.call("TraceSetting", request))
    assert shown == {**default, "trace_level": ["TIMESTAMPS", "TENSORS"]}
    assert frontend.requester.messages[-1] == UpdateTraceSettings(
        0, "simple", {"level": ("TIMESTAMPS", "TENSORS"), "rate": None}
    )


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (
            trace_request(trace_file=("x",)),
            ("UNIMPLEMENTED", "trace file location can not be updated through network protocol"),
        ),
        (trace_request("nope"), ("INVALID_ARGUMENT", "Request for unknown model : nope")),
        (trace_request(trace_rate=("1", "2")), ("INVALID_ARGUMENT", "expect only 1 value for 'trace_rate'")),
    ],
)
def test_trace_settings_that_are_refused(frontend: Frontend, request_: Any, expected: tuple[str, str]) -> None:
    assert refusal(frontend.call, "TraceSetting", request_) == expected


def test_registering_memory() -> None:
    with Frontend(allow_client_shm="true") as frontend:
        for method, request, message in (
            (
                "SystemSharedMemoryRegister",
                pb.SystemSharedMemoryRegisterRequest(name="r", key="/k", offset=2**64 - 1, byte_size=2**63),
                RegisterRegion(0, "r", "/k", 2**64 - 1, 2**63),
            ),
            (
                "CudaSharedMemoryRegister",
                pb.CudaSharedMemoryRegisterRequest(name="c", raw_handle=b"h" * 64, device_id=1, byte_size=5),
                RegisterCudaRegion(0, "c", b"h" * 64, 1, 5),
            ),
            (
                "SystemSharedMemoryUnregister",
                pb.SystemSharedMemoryUnregisterRequest(name="r"),
                UnregisterRegions(0, "system", "r"),
            ),
            ("CudaSharedMemoryUnregister", None, UnregisterRegions(0, "cuda")),
        ):
            frontend.call(method, request)
            assert frontend.requester.messages[-1] == message
        frontend.requester.answers.append(AlreadyExists("shared memory region 'r' already in manager"))
        expected = ("ALREADY_EXISTS", "shared memory region 'r' already in manager")
        assert refusal(frontend.call, "SystemSharedMemoryRegister") == expected


def test_what_is_registered() -> None:
    regions = (
        Region("system", "a", 1, 8, 100, "/k"),
        Region("system", "b", 2, 0, 10, "/l"),
        Region("cuda", "c", 3, 0, 7, device=2, handle=b"h" * 64),
    )
    with Frontend(allow_client_shm="false") as frontend:
        frontend.do(lambda: frontend.requester.regions.update(RegionTable(1, 1, regions)))
        system = frontend.call("SystemSharedMemoryStatus").regions
        assert {name: (r.name, r.key, r.offset, r.byte_size) for name, r in system.items()} == {
            "a": ("a", "/k", 8, 100),
            "b": ("b", "/l", 0, 10),
        }
        one = frontend.call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="b"))
        assert set(one.regions) == {"b"}
        cuda = frontend.call("CudaSharedMemoryStatus").regions
        assert {name: (r.name, r.device_id, r.byte_size) for name, r in cuda.items()} == {"c": ("c", 2, 7)}
        request = pb.SystemSharedMemoryStatusRequest(name="z")
        expected = ("NOT_FOUND", "Unable to find system shared memory region: 'z'")
        assert refusal(frontend.call, "SystemSharedMemoryStatus", request) == expected


def test_without_clients_memory() -> None:
    with Frontend(allow_client_shm="false") as frontend:
        for kind in ("System", "Cuda"):
            for what in ("Register", "Unregister"):
                assert refusal(frontend.call, f"{kind}SharedMemory{what}") == DISABLED
        assert not frontend.requester.messages
