"""Tables, and what of the log files reaches the foreground."""

import json
import os
from pathlib import Path

import pytest

from conch.cli.logs import Follower, ProcessLogs, readable
from conch.cli.model_logs import logs
from conch.cli.tables import model_table
from conch.messages import ModelEntry
from conch.run_dir import RunDir


def test_the_table_of_models_is_triton_s() -> None:
    table = model_table(
        [
            ModelEntry("simple", 1, "READY", "", True),
            ModelEntry("broken", 0, "UNAVAILABLE", "Internal: no version folder", False),
        ]
    )
    assert table == (
        "+--------+---------+------------------------------------------+\n"
        "| Model  | Version | Status                                   |\n"
        "+--------+---------+------------------------------------------+\n"
        "| simple | 1       | READY                                    |\n"
        "| broken | -       | UNAVAILABLE: Internal: no version folder |\n"
        "+--------+---------+------------------------------------------+\n"
    )


def test_long_reasons_wrap_and_keep_their_lines() -> None:
    reason = "Internal: it failed\nTraceback (most recent call last):\n" + "word " * 50
    table = model_table([ModelEntry("m", 1, "UNAVAILABLE", reason, False)])
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) < 130
    assert "Traceback (most recent call last):" in table
    assert table.count("word") == 50


def test_names_cannot_break_the_table() -> None:
    name = "two\nlines\x1b[31m \udc80\u00e9"
    table = model_table([ModelEntry(name, 1, "UNAVAILABLE", f"{name}\nbeep\a", False)])
    assert len({len(line) for line in table.splitlines()}) == 1
    assert "| two\\nlines\\x1b[31m \\udc80\u00e9 |" in table
    assert "beep\\x07" in table
    assert "\x1b" not in table


def test_an_empty_repository_has_an_empty_table() -> None:
    assert model_table([]).count("\n") == 4


def test_a_follower_sees_complete_new_lines_only(run_dir: Path) -> None:
    path = run_dir / "x.log"
    path.write_bytes(b"of the last run\n")
    follower = Follower(path)
    assert follower.lines() == []
    with path.open("ab") as file:
        file.write(b"one\ntw")
        file.flush()
        assert follower.lines() == [b"one"]
        file.write(b"o\n")
    assert follower.lines() == [b"two"]


def test_a_follower_follows_rotation(run_dir: Path) -> None:
    path = run_dir / "x.log"
    follower = Follower(path)
    assert follower.lines() == []
    path.write_bytes(b"one\n")
    assert follower.lines() == [b"one"]
    path.rename(run_dir / "x.log.1")
    assert follower.lines() == []
    path.write_bytes(b"two\n")
    assert follower.lines() == [b"two"]


def test_a_follower_follows_a_log_that_is_cut(run_dir: Path) -> None:
    path = run_dir / "x.log"
    path.write_bytes(b"one\ntw")
    follower = Follower(path, from_start=True)
    assert follower.lines() == [b"one"]
    os.truncate(path, 0)
    with path.open("ab") as file:
        file.write(b"two\n")
    assert follower.lines() == [b"two"]


def test_the_last_lines_of_a_log_that_has_just_been_begun(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logs_folder = RunDir(run_dir).model_logs
    logs_folder.mkdir(parents=True)
    (logs_folder / "m.log.1").write_bytes(b"one\ntwo\nthree\n")
    (logs_folder / "m.log").write_bytes(b"four\n")
    for count, wanted in ((1, ["four"]), (3, ["two", "three", "four"]), (9, ["one", "two", "three", "four"])):
        assert logs(["m", f"--run-dir={run_dir}", f"--lines={count}"]) == 0
        assert capfd.readouterr().out.split() == wanted


def write_logs(folder: Path) -> None:
    with (folder / "broker.log").open("a") as file:
        file.write('I1121 08:29:12.123456 1 a.py:1] "fine"\n')
        file.write('W1121 08:29:12.123456 1 a.py:1] "careful"\n')
        file.write('2026-11-21T08:29:12Z E 1 a.py:1] "broken"\n')
        file.write("Traceback (most recent call last):\n")
    with (folder / "supervisord.log").open("a") as file:
        file.write("2026-11-21 08:49:38,221 INFO spawned: 'http' with pid 5\n")
        file.write("2026-11-21 08:49:38,221 CRIT Server 'unix_http_server' running without any HTTP authentication\n")
        file.write("2026-11-21 08:49:38,221 WARN exited: http (exit status 1; not expected)\n")


def test_the_foreground_shows_what_a_person_needs(run_dir: Path) -> None:
    logs = ProcessLogs(run_dir, ["broker", "http"], verbose=False)
    write_logs(run_dir)
    shown = "\n".join(logs.take())
    assert "exited: http" in shown and "careful" in shown and "broken" in shown and "Traceback" in shown
    assert "fine" not in shown and "spawned" not in shown and "authentication" not in shown
    assert logs.exits == {"http": 1}
    assert logs.take() == []


def test_a_message_of_many_lines_is_shown_as_such() -> None:
    begin = b"E1121 08:29:12.123456 1 a.py:1] "
    message = 'failed: "x"\n  File "a.py"\nE1121 no event\x1b[31m\té\\'
    shown = readable(begin + json.dumps(message, ensure_ascii=False).encode())
    assert [line.decode() for line in shown] == [
        begin.decode() + 'failed: "x"', '      File "a.py"', "    E1121 no event\\x1b[31m\té\\"
    ]  # fmt: skip
    for plain in (b"a \\n print", begin + b'"fine"', begin + b'"no \\x json"', b'"a\\nb"'):
        assert readable(plain) == [plain]


def test_what_models_say_is_shown_with_their_names(run_dir: Path) -> None:
    models = run_dir / "models"
    models.mkdir()
    (models / "old.log").write_text("of the last run\n")
    quiet, talkative = ProcessLogs(run_dir, [], verbose=False), ProcessLogs(run_dir, [], False, talkative=True)
    lines = 'a print\nI1121 08:29:12.123456 1 a.py:1] "fine"\nE1121 08:29:12.123456 1 a.py:1] "broken"\n'
    lines += "Extension modules: numpy.linalg._umath_linalg (total: 14)\n"  # of a crash, after what says more
    for name in ("old", "new"):
        with (models / f"{name}.log").open("a") as file:
            file.write(lines)
    shown = quiet.take()
    broken = 'E1121 08:29:12.123456 1 a.py:1] "broken"'
    assert sorted(shown) == sorted(f"[{name}] {line}" for name in ("old", "new") for line in ("a print", broken))
    assert len([line for line in talkative.take() if line.endswith('"fine"')]) == 2
    assert quiet.take() == []


def test_verbose_shows_everything(run_dir: Path) -> None:
    logs = ProcessLogs(run_dir, ["broker", "http"], verbose=True)
    write_logs(run_dir)
    shown = "\n".join(logs.take())
    assert "fine" in shown and "spawned" in shown
