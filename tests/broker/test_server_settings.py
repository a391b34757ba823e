import os
import time
from pathlib import Path

import msgspec
import pytest

from broker.server_settings import Changed, SettingsKeeper, initial_trace
from conch.errors import InvalidArgument
from conch.messages import (
    PROTOCOL_VERSION,
    Answer,
    Fault,
    LogSettings,
    ObserverHello,
    ServerSettings,
    ToObserver,
    TraceSettings,
    UpdateLogSettings,
    UpdateTraceSettings,
    Welcome,
)
from conch.run_dir import RunDir
from tests.broker.harness import Peer, around, broker, write_model


def keeper(*trace_config: str) -> SettingsKeeper:
    return SettingsKeeper(LogSettings(), initial_trace(trace_config))


class TestLogs:
    def test_only_what_is_named_changes(self) -> None:
        settings = keeper()
        assert settings.update_log({"info": False, "verbose_level": 3}) == LogSettings(info=False, verbose_level=3)
        assert settings.update_log({"format": "ISO8601"}) == LogSettings(info=False, verbose_level=3, format="ISO8601")
        assert settings.update_log({}) == settings.log == settings.message(7).log
        assert settings.message(7).epoch == 7

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"format": "x"}, "invalid argument for log_format, got: x"),
            ({"info": 1}, "expect boolean for 'log_info'"),
            ({"verbose_level": -1}, "expect unsigned integer for 'log_verbose_level'"),
            ({"verbose_level": True}, "expect unsigned integer for 'log_verbose_level'"),
            ({"verbose_level": 2**31}, "expect unsigned integer for 'log_verbose_level'"),
        ],
    )
    def test_an_error_changes_nothing(self, changes: dict[str, bool | int | str], text: str) -> None:
        settings = keeper()
        with pytest.raises(InvalidArgument) as raised:
            settings.update_log({"warning": False, **changes})
        assert raised.value.message == text
        assert settings.log == LogSettings()

    def test_no_file_can_be_named(self) -> None:
        assert keeper().update_log({"file": "/etc/passwd"}) == LogSettings()


class TestTraces:
    def test_models_follow_the_global_settings_where_they_have_none(self) -> None:
        settings = keeper()
        assert settings.update_trace("m", {"rate": ("9",)}) == TraceSettings(rate=9)
        assert settings.update_trace("", {"rate": ("10",), "count": ("8",)}) == TraceSettings(rate=10, count=8)
        assert settings.trace("m") == TraceSettings(rate=9, count=8)
        assert settings.trace("other") == TraceSettings(rate=10, count=8)
        assert settings.message(1).trace == {"": TraceSettings(rate=10, count=8), "m": TraceSettings(rate=9, count=8)}
        assert settings.update_trace("m", {"rate": None}) == TraceSettings(rate=10, count=8)
        assert list(settings.message(1).trace) == [""]
        nothing = {"level": None, "rate": None, "count": None, "log_frequency": None}
        assert settings.update_trace("", nothing) == TraceSettings()

    def test_cleared_settings_are_those_of_the_flags(self) -> None:
        settings = keeper("level=TENSORS", "rate=3", "triton,file=/f")
        assert settings.update_trace("", {"rate": ("5",), "level": ("OFF",)}).rate == 5
        assert settings.update_trace("", {"rate": None, "level": None}) == TraceSettings(
            level=("TENSORS",), rate=3, file="/f"
        )

    @pytest.mark.parametrize(
        ("names", "level"),
        [
            (("TENSORS", "TIMESTAMPS", "TENSORS"), ("TIMESTAMPS", "TENSORS")),
            (("OFF",), ("OFF",)),
            ((), ("TENSORS",)),
            (("x", "off"), ("TENSORS",)),
            (("x", "TIMESTAMPS"), ("TIMESTAMPS",)),
        ],
    )
    def test_levels(self, names: tuple[str, ...], level: tuple[str, ...]) -> None:
        settings = keeper("level=TENSORS", "triton,file=/f")
        assert settings.update_trace("", {"level": names}).level == level

    @pytest.mark.parametrize(
        ("text", "rate"), [("5x", 5), (" 7", 7), ("+3", 3), ("0", 0), ("-1", 2**32 - 1), ("-5.5", 2**32 - 5)]
    )
    def test_numbers_are_read_as_c_reads_them(self, text: str, rate: int) -> None:
        assert keeper().update_trace("", {"rate": (text,)}).rate == rate
        assert keeper().update_trace("", {"log_frequency": (text,)}).log_frequency == rate

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"rate": ("x",)}, "Unable to parse 'trace_rate', got: x"),
            ({"rate": ("",)}, "Unable to parse 'trace_rate', got: "),
            (
                {"rate": ("99999999999",)},
                "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: 99999999999",
            ),
            ({"rate": ("9" * 10_000,)}, "Unable to parse 'trace_rate', value is out of range"),
            ({"count": ("x",)}, "Unable to parse 'trace_count', got: x"),
            (
                {"count": ("2147483648",)},
                "Unable to parse 'trace_count', value is out of range [ -1, 2147483647 ], got: 2147483648",
            ),
            ({"count": ("-2",)}, "Unable to parse 'trace_count'. Expecting value >= -1, got:-2"),
            ({"log_frequency": ("x",)}, "Unable to parse 'log_frequency', got: x"),
            ({"level": ("OFF", "TIMESTAMPS")}, "Expect only one trace level 'OFF' is specified"),
            ({"level": ("OFF", "OFF")}, "Expect only one trace level 'OFF' is specified"),
            ({"level": ("TIMESTAMPS",)}, "Attempting to set invalid trace setting :trace file name is not given"),
        ],
    )
    def test_an_error_changes_nothing(self, changes: dict[str, tuple[str, ...] | None], text: str) -> None:
        settings = keeper()
        for model in ("", "m"):
            with pytest.raises(InvalidArgument) as raised:
                settings.update_trace(model, {"rate": ("5",), **changes})
            assert raised.value.message.startswith(text)
        assert settings.message(1).trace == {"": TraceSettings()}

    def test_tracing_needs_a_rate_and_a_count(self) -> None:
        settings = keeper("triton,file=/f")
        with pytest.raises(InvalidArgument, match=r"sample rate must be non-zero"):
            settings.update_trace("", {"rate": ("0",), "level": ("TENSORS",)})
        with pytest.raises(InvalidArgument, match=r"^Attempting to set invalid trace setting :$"):
            settings.update_trace("", {"count": ("0",), "level": ("TENSORS",)})

    def test_a_global_change_that_breaks_a_models_settings_is_refused(self) -> None:
        settings = keeper("triton,file=/f")
        settings.update_trace("m", {"level": ("TENSORS",)})
        with pytest.raises(InvalidArgument, match=r"sample rate must be non-zero"):
            settings.update_trace("", {"rate": ("0",)})
        assert settings.trace("m").rate == 1000

    def test_no_file_or_mode_can_be_named(self) -> None:
        assert keeper().update_trace("", {"file": ("/etc/passwd",), "mode": ("opentelemetry",)}) == TraceSettings()


class TestFlags:
    def test_values(self) -> None:
        assert initial_trace(()) == TraceSettings()
        found = initial_trace(
            (
                "level=timestamps",
                "level=TENSORS",
                "rate=5",
                "count=7",
                "mode=Triton",
                "triton,file=/a=b,c",
                "triton,log-frequency=3",
                "opentelemetry,url=http://localhost",
            )
        )
        assert found == TraceSettings(("TIMESTAMPS", "TENSORS"), 5, 7, 3, "/a=b,c", "triton")
        assert initial_trace(("level=OFF", "level=TENSORS")).level == ("OFF",)

    @pytest.mark.parametrize(
        "text", ["", "rate", "rate=", "=5", ",rate=5", "triton,file", "rate=x", "level=x", "mode=x"]
    )
    def test_what_is_no_setting(self, text: str) -> None:
        with pytest.raises(InvalidArgument):
            initial_trace((text,))


class TestSuccessors:
    def test_a_later_broker_goes_on_with_what_was_changed(self) -> None:
        settings = keeper("rate=5")
        settings.update_log({"error": False})
        settings.update_trace("m", {"count": ("3",), "level": ("OFF",)})
        text = msgspec.json.encode(settings.changed)
        changed = msgspec.json.decode(text, type=Changed)
        later = SettingsKeeper(LogSettings(), initial_trace(("rate=5",)), changed)
        assert later.message(1) == settings.message(1)
        assert later.update_trace("m", {"count": None}) == TraceSettings(rate=5)

    def test_other_flags_begin_anew(self) -> None:
        settings = keeper("rate=5")
        settings.update_log({"error": False})
        assert SettingsKeeper(LogSettings(), initial_trace(()), settings.changed).log == LogSettings()


class TestBroker:
    def test_everybody_is_told_and_a_later_broker_knows(self, run_dir: Path, tmp_path: Path) -> None:
        repository = tmp_path / "models"
        write_model(repository, "echo")
        with around(run_dir) as peers:
            with broker(run_dir, repository, trace_config="rate=7") as process:
                requester, other, launcher = peers.requester(), peers.requester(), peers.launcher()
                observer = peers.peer("observer", ToObserver)
                observer.connect()
                observer.send(ObserverHello(PROTOCOL_VERSION, os.getpid()))
                observer.expect(Welcome)
                worker = launcher.spawn()
                requester.send(UpdateLogSettings(1, {"verbose_level": 1}))
                answer = requester.expect(Answer)
                assert msgspec.convert(answer.result, LogSettings) == LogSettings(verbose_level=1)
                requester.send(UpdateTraceSettings(2, "echo", {"count": ("5",)}))
                answer = requester.expect(Answer)
                assert msgspec.convert(answer.result, TraceSettings) == TraceSettings(rate=7, count=5)
                for peer in (other, launcher, worker.control, observer):
                    _expect_settings(peer, TraceSettings(rate=7, count=5))
                requester.send(UpdateLogSettings(3, {"format": "x"}))
                answer = requester.expect(Answer)
                assert answer.fault == Fault("InvalidArgument", "invalid argument for log_format, got: x")
                saved = RunDir(run_dir).changed_settings
                deadline = time.monotonic() + 10
                while not saved.exists() or b"echo" not in saved.read_bytes():  # written after the answer
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                process.kill()
            with broker(run_dir, repository, trace_config="rate=7"):
                _expect_settings(peers.requester(), TraceSettings(rate=7, count=5))

    def test_settings_are_sent_with_the_welcome(self, run_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "models").mkdir()
        with broker(run_dir, tmp_path / "models", log_verbose="2"), around(run_dir) as peers:
            assert peers.requester().expect(ServerSettings).log == LogSettings(verbose_level=2)


def _expect_settings(peer: Peer, trace: TraceSettings) -> None:
    while True:
        settings = peer.expect(ServerSettings)
        if settings.trace.get("echo") == trace:
            assert settings.log == LogSettings(verbose_level=1)
            return
