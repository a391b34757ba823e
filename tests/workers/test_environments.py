"""What makes an environment: which one, unpacking it, keeping it, and the words for why there is none."""

import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from conch.messages import Spawn
from conch.settings import Settings
from workers.environments import overlay, prepare, requirements, stamps
from workers.environments.activation import activated
from workers.environments.archives import Refused, unpack
from workers.environments.cache import Cache, UnsafeCache
from workers.environments.choice import Wanted, choose
from workers.environments.failures import EnvironmentFailed, telling, without_places
from workers.environments.interpreters import Interpreter
from workers.environments.messages import Preparation

# ------------------------------------------------------------------------------------------------------------- choosing


def spawn(config: str = '{"backend":"python"}', **settings: str) -> Spawn:
    return Spawn("id", "m", 2, 0, "m_0_0", "KIND_CPU", 0, config, "", False, "/r/m", "/r/m/2", settings)


def given(path: str, backend: str = "python") -> Spawn:
    return spawn(f'{{"backend":"{backend}","parameters":{{"EXECUTION_ENV_PATH":{{"string_value":"{path}"}}}}}}')


def having(*paths: str) -> Callable[[str], bool]:
    return lambda path: path in paths


def test_an_ordinary_model_needs_none() -> None:
    assert choose(spawn(), having()) is None
    assert choose(given(""), having()) is None


def test_a_given_environment() -> None:
    assert choose(given("/envs/one.tar.gz"), having()) == Wanted("given", "/envs/one.tar.gz", "/envs/one.tar.gz")
    named = "$$TRITON_MODEL_DIRECTORY/envs/../one"
    assert choose(given(named), having()) == Wanted("given", "/r/m/one", named)
    assert choose(given("/one"), having("/r/m/requirements.txt")) == Wanted("given", "/one", "/one")


def test_a_list_of_packages() -> None:
    beside, above = "/r/m/2/requirements.txt", "/r/m/requirements.txt"
    assert choose(spawn(), having(above)) == Wanted("requirements", above, "requirements.txt")
    assert choose(spawn(), having(above, beside)) == Wanted("requirements", beside, "requirements.txt")
    assert choose(spawn(requirements="false"), having(above)) is None


def test_other_backends_have_none() -> None:
    assert choose(given("/one", "onnxruntime"), having()) is None
    assert choose(spawn('{"backend":"onnxruntime"}'), having("/r/m/requirements.txt")) is None
    assert choose(given("/one", "a_backend_in_python"), having()) is not None


def test_what_an_environment_was_made_from_has_changed(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("-rmore/others.txt\n--constraint=limits.txt\nnumpy\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "others.txt").write_text("-r ../requirements.txt\n")
    wanted = Wanted("requirements", str(tmp_path / "requirements.txt"), "")
    first = stamps.now(wanted)
    assert stamps.now(wanted) == first
    digest = requirements._digest(tmp_path / "requirements.txt")
    (tmp_path / "limits.txt").write_text("numpy<2\n")
    second = stamps.now(wanted)
    assert second != first
    assert requirements._digest(tmp_path / "requirements.txt") != digest
    (tmp_path / "more" / "others.txt").write_text("msgspec\n")
    assert stamps.now(wanted) not in (first, second)


def test_lists_that_include_each_other(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    first, second = tmp_path / "requirements.txt", tmp_path / "more" / "others.txt"
    first.write_text("-r more/others.txt\n")
    second.write_text("-r ../requirements.txt\n")
    assert stamps.lists(first) == [first, second]


@pytest.mark.parametrize(
    ("listed", "shared"),
    [
        ("numpy>=2 # or 3/4\n", True),
        ("--index-url https://host/simple\nnumpy @ https://host/numpy.whl#sha256=0\n", True),
        ("./helpers\n", False),
        (".[extra]\n", False),
        ("-e .\n", False),
        ("--find-links wheels\nhelpers\n", False),
        ("helpers-1.0-py3-none-any.whl\n", False),
    ],
)
def test_models_share_an_environment_unless_packages_lie_in_their_folders(
    tmp_path: Path, listed: str, shared: bool
) -> None:
    digests = set()
    for model in ("one", "two"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "requirements.txt").write_text(listed)
        digests.add(requirements._digest(tmp_path / model / "requirements.txt"))
    assert (len(digests) == 1) is shared


def test_a_list_that_changes_while_its_packages_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(content: Path, file: Path) -> None:
        made.append(file.read_text())
        if len(made) == 1:
            file.write_text("second, as pip may have read it\n")
        python = content / "bin" / "python"
        python.parent.mkdir()
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o700)

    monkeypatch.setattr(requirements, "_make", make)
    listed = tmp_path / "requirements.txt"
    listed.write_text("first\n")
    wanted = Wanted("requirements", str(listed), "requirements.txt")
    prepared = prepare.prepare(Preparation("m", wanted, str(tmp_path / "cache")))
    assert made == ["first\n", "second, as pip may have read it\n"]
    assert prepared.stamp == stamps.now(wanted)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [
        Path(prepared.folder).parent.name
    ]
    assert requirements._digest(listed) in prepared.folder


# ------------------------------------------------------------------------------------------------------------ unpacking


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


def pack(path: Path, *entries: tarfile.TarInfo, content: bytes = b"content") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info in entries:
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


FOLDER, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def test_what_an_environment_holds(tmp_path: Path) -> None:
    archive = pack(
        tmp_path / "env.tar.gz",
        entry("./", FOLDER),
        entry("./bin", FOLDER, mode=0o777),
        entry("bin/tool", mode=0o4755),
        entry("lib/deep/data"),
        entry("lib/deep/data"),
        entry("lib64", LINK, "lib"),
        entry("lib/up", LINK, "../bin/tool"),
        entry("bin/same", HARD, "./bin/tool"),
        entry("bin/python3", LINK, "python"),
        entry("bin/python", LINK, sys.executable),
    )
    folder = tmp_path / "env"
    folder.mkdir()
    unpack(archive, folder)
    assert (folder / "lib64" / "deep" / "data").read_bytes() == b"content"
    assert (folder / "lib" / "up").read_bytes() == b"content"
    assert (folder / "bin" / "tool").stat().st_mode & 0o7777 == 0o700
    assert (folder / "lib" / "deep" / "data").stat().st_mode & 0o7777 == 0o600
    assert (folder / "bin" / "same").stat().st_ino == (folder / "bin" / "tool").stat().st_ino
    assert os.path.samefile(folder / "bin" / "python3", sys.executable)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([entry("../outside")], "Path contains '..'"),
        ([entry("lib/../../outside")], "Path contains '..'"),
        ([entry("/tmp/outside")], "Path is absolute"),
        ([entry("link", LINK, "../outside")], "leads out of the environment"),
        ([entry("lib/link", LINK, "../../outside")], "leads out of the environment"),
        ([entry("link", LINK, "/etc")], "leads out of the environment"),
        ([entry("bin/pythonic", LINK, "/etc")], "leads out of the environment"),
        ([entry("a/b/up", LINK, "../.."), entry("out", LINK, "a/b/up/..")], "leads out of the environment"),
        ([entry("link", LINK, "lib"), entry("link/file")], "leads through the link 'link'"),
        ([entry("bin/python", LINK, "/tmp"), entry("bin/python/file")], "leads through the link 'bin/python'"),
        ([entry("bin/python", LINK, "/tmp"), entry("bin/python", FOLDER)], "it is a link before"),
        ([entry("bin/python", LINK, "/etc/passwd"), entry("copy", HARD, "bin/python")], "no file of the archive"),
        ([entry("copy", HARD, "/etc/passwd")], "Path is absolute"),
        ([entry("copy", HARD, "../../etc/passwd")], "Path contains '..'"),
        ([entry("copy", HARD, "nothing")], "no file of the archive"),
        ([entry("device", tarfile.CHRTYPE)], "neither a file"),
        ([entry("pipe", tarfile.FIFOTYPE)], "neither a file"),
    ],
)
def test_an_archive_that_reaches_outside(tmp_path: Path, entries: list[tarfile.TarInfo], reason: str) -> None:
    archive = pack(tmp_path / "env.tar.gz", *entries)
    folder = tmp_path / "one" / "env"
    folder.mkdir(parents=True)
    with pytest.raises(Refused, match=reason.replace("(", "[(]")):
        unpack(archive, folder)
    assert sorted(os.listdir(tmp_path)) == ["env.tar.gz", "one"]
    assert os.listdir(tmp_path / "one") == ["env"]


def test_a_file_in_the_place_of_a_link_is_not_written_through_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    archive = pack(tmp_path / "env.tar.gz", entry("bin/python", LINK, str(outside)), entry("bin/python"))
    folder = tmp_path / "env"
    folder.mkdir()
    unpack(archive, folder)
    assert outside.read_text() == "mine"
    assert (folder / "bin" / "python").read_text() == "content"


def test_an_archive_that_is_too_large_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.environments.archives.MAX_EXTRACTED_NBYTES", 10)
    monkeypatch.setattr("workers.environments.archives.MAX_ENTRIES", 3)
    folder = tmp_path / "env"
    folder.mkdir()
    with pytest.raises(Refused, match="would not fit"):
        unpack(pack(tmp_path / "large", entry("one"), entry("two")), folder)
    with pytest.raises(Refused, match="more than 3 entries"):
        unpack(pack(tmp_path / "many", *(entry(f"f{number}", FOLDER) for number in range(4))), folder)
    whole = pack(tmp_path / "cut", entry("one"), content=os.urandom(10)).read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-30])
    (tmp_path / "text").write_text("no archive")
    for name in ("cut", "text"):
        with pytest.raises(Refused, match="is not a tar archive, or is damaged"):
            unpack(tmp_path / name, folder)


# -------------------------------------------------------------------------------------------------------------- keeping


def test_what_was_made_is_kept(tmp_path: Path) -> None:
    made: list[Path] = []
    cache = Cache(tmp_path / "cache")
    first = cache.made("one", made.append)
    assert first.is_dir() and cache.made("one", made.append) == first == made[0]
    assert Cache(tmp_path / "cache").made("one", made.append) == first
    assert cache.made("two", made.append) != first
    assert len(made) == 2


def test_what_failed_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")

    def fail(content: Path) -> None:
        (content / "half").touch()
        raise EnvironmentFailed("no")

    with pytest.raises(EnvironmentFailed):
        cache.made("one", fail)
    found = cache.made("one", lambda content: None)
    assert os.listdir(found) == []


def test_many_who_want_the_same_wait_for_one(tmp_path: Path) -> None:
    made: list[Path] = []
    found: list[Path] = []
    may_end = threading.Event()

    def make(content: Path) -> None:
        made.append(content)
        assert may_end.wait(20)
        (content / "done").touch()

    def want() -> None:
        found.append(Cache(tmp_path / "cache").made("one", make))
        assert (found[-1] / "done").exists()

    threads = [threading.Thread(target=want) for _ in range(5)]
    for thread in threads:
        thread.start()
    may_end.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(found) == 5


def test_what_a_dead_maker_left_is_made_anew(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from workers.environments.cache import Cache\n"
        "def make(content):\n    (content / 'half').touch(); print(flush=True); sys.stdin.read()\n"
        "Cache(Path(sys.argv[1])).made('one', make)"
    )
    maker = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "cache"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert maker.stdout is not None and maker.stdin is not None
    with maker:
        assert maker.stdout.readline()
        maker.kill()
    found = Cache(tmp_path / "cache").made("one", lambda content: (content / "whole").touch())
    assert os.listdir(found) == ["whole"]


def test_what_somebody_has_deleted_is_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.made("one", lambda content: None).rmdir()
    assert cache.made("one", lambda content: (content / "again").touch()).joinpath("again").exists()


def test_a_cache_that_others_can_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UnsafeCache, match="--environment-cache-dir"):
        Cache(tmp_path)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert Settings(run_dir="/run/c").environment_cache == f"{tmp_path}/.cache/conch"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert Settings(run_dir="/run/c").environment_cache == "/caches/conch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/nonexistent")
    assert Settings(run_dir="/run/c").environment_cache == "/run/c/conch"
    assert Settings(run_dir="/run/c", environment_cache_dir="/envs").environment_cache == "/envs"


# ------------------------------------------------------------------------------------------------- running, and failing


def test_the_variables_of_an_environment(tmp_path: Path) -> None:
    server = {
        "PATH": "/bin",
        "PYTHONHOME": "/p",
        "PYTHONPATH": f"/helpers:{tmp_path}:",
        "VIRTUAL_ENV": "/server",
        "A": "b",
    }
    assert activated(server, Path("/conda"), [os.path.realpath(tmp_path)]) == {
        "PATH": "/conda/bin:/bin",
        "PYTHONPATH": "/helpers",
        "CONDA_PREFIX": "/conda",
        "A": "b",
    }
    (tmp_path / "pyvenv.cfg").touch()
    assert activated({"CONDA_PREFIX": "/server", "PYTHONPATH": "/r"}, tmp_path, ["/r"]) == {
        "PATH": f"{tmp_path}/bin:{os.defpath}",
        "VIRTUAL_ENV": str(tmp_path),
    }


def interpreter(version: tuple[int, int, int] = (3, 12, 0), **found: str) -> Interpreter:
    return Interpreter(version, "cpython-312", "linux-x86_64", found, pip=True)


def test_what_an_environment_lacks() -> None:
    assert overlay.check(interpreter()) == ("pyzmq", "msgspec", "posix_ipc", "numpy")
    assert overlay.check(interpreter(numpy="1.26.4", msgspec="0.19.0")) == ("pyzmq", "posix_ipc")
    assert overlay.check(interpreter(numpy="", pyzmq="27", msgspec="1.0", posix_ipc="1.3")) == ()


def test_what_is_too_old() -> None:
    with pytest.raises(EnvironmentFailed, match=r"for Python 3.9, and workers need Python 3.10 or newer"):
        overlay.check(interpreter((3, 9, 18)))
    with pytest.raises(EnvironmentFailed, match=r"its numpy 1.21.6 is too old for workers; change that to numpy>=1.22"):
        overlay.check(interpreter(numpy="1.21.6"))


def test_reasons_hold_no_places() -> None:
    assert without_places("cannot open '/home/me/.secrets/file.txt': no") == "cannot open 'file.txt': no"
    assert without_places("ERROR: /a/b/c is not valid, see ~/x/y") == "ERROR: c is not valid, see y"
    assert without_places("at https://me:word@host/simple/x/ (1/2)") == "at [address] (1/2)"
    assert without_places("$$TRITON_MODEL_DIRECTORY/env.tar.gz") == "$$TRITON_MODEL_DIRECTORY/env.tar.gz"


def test_the_telling_lines() -> None:
    printed = ["Looking\n", "WARNING: x\n", "ERROR: Could not find /a/b\n", "\n", "error: last\n", "[notice] new pip\n"]
    assert telling(printed) == "ERROR: Could not find b\nerror: last"
    assert telling(["one\n", "two\n"]) == "one\ntwo"
    assert telling(["x" * 1000]) == "x" * 300 + " …"
