"""shm.room on machines and in containers that are written down in files."""

from pathlib import Path

import pytest

from shm import room

MIB = 1 << 20


def write(folder: Path, available_mib: int, limit: str = "", used_mib: int = 0, droppable_mib: int = 0) -> None:
    (folder / "meminfo").write_text(
        f"MemTotal: {4096 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {available_mib * 1024} kB\n"
    )
    (folder / "cgroup").write_text("4:memory:/elsewhere\n0::/mine\n" if limit else "4:memory:/elsewhere\n")
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine" / "memory.max").write_text(limit)
    (folder / "mine" / "memory.current").write_text(f"{used_mib * MIB}\n")
    (folder / "mine" / "memory.stat").write_text(f"anon 5\ninactive_file {droppable_mib * MIB}\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(room, "_CGROUPS", tmp_path)
    return tmp_path


def test_machine(folder: Path) -> None:
    write(folder, 200)
    assert room.has_room(72 * MIB)
    assert not room.has_room(73 * MIB)


def test_container(folder: Path) -> None:
    write(folder, 3000, f"{256 * MIB}\n", used_mib=200, droppable_mib=60)
    assert room.has_room(100 * MIB)
    assert not room.has_room(101 * MIB)
    write(folder, 3000, "max\n", used_mib=2000)
    assert room.has_room(1000 * MIB)


def test_nothing_can_be_read(folder: Path) -> None:
    assert room.has_room(1 << 50)
