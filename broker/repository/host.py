"""What this machine offers to models, found out without loading any driver library."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

_GPU_FILE = re.compile(r"nvidia\d+")


class Host(msgspec.Struct, frozen=True):
    """``gpus`` are the device numbers that workers see (after CUDA_VISIBLE_DEVICES). ``cpu_only_backends`` cannot use
    them with the packages that are installed, so that KIND_AUTO means KIND_CPU for their models."""

    gpus: tuple[int, ...] = ()
    cpu_only_backends: frozenset[str] = frozenset()

    @classmethod
    def detect(cls, environ: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> "Host":
        gpus = _visible_gpus(environ, devices)
        if not gpus or _installed("onnxruntime-gpu"):
            return cls(gpus)
        return cls(gpus, frozenset({"onnxruntime"}))

    def gpus_for(self, backend: str) -> tuple[int, ...]:
        return () if backend in self.cpu_only_backends else self.gpus


def _visible_gpus(environ: Mapping[str, str], devices: Path) -> tuple[int, ...]:
    try:
        present = sum(1 for entry in os.scandir(devices) if _GPU_FILE.fullmatch(entry.name))
    except OSError:
        present = 0
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(range(present))
    chosen = 0
    for entry in visible.split(","):  # CUDA stops at the first entry that names no device
        entry = entry.strip()
        if not entry or entry.startswith("-") or (entry.isdigit() and int(entry) >= present):
            break
        chosen += 1
    return tuple(range(min(chosen, present)))


def _installed(distribution: str) -> bool:
    from importlib import metadata  # 15 ms that a machine without GPUs need not spend

    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
