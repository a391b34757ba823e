"""The real Triton: the server inside the ``nvidia-pytriton`` wheel, which has the Python backend and runs on the CPU.

``$CONCH_TRITON_VENV`` names a virtual environment with this wheel; ``scripts/triton-environment`` makes one.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "CONCH_TRITON_VENV"
#: asked of the environment's own interpreter, with which the models run
_PATHS = (
    "import json, sysconfig; v = sysconfig.get_config_var; "
    "print(json.dumps([sysconfig.get_path('purelib'), v('LIBDIR'), v('py_version_short')]))"
)


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel."""

    folder: Path

    def start(self, arguments: Sequence[str], work: Path) -> "Start":
        """``work``: an empty folder, which the server needs while it runs."""
        paths = subprocess.check_output([self.folder / "bin" / "python", "-c", _PATHS], timeout=60)
        site, libraries, version = json.loads(paths)
        server = Path(site) / "pytriton" / "tritonserver"
        python_backend = work / "python"
        shutil.copytree(server / "backends" / "python", python_backend)
        shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", python_backend)
        folders = [f"--backend-directory={work}", f"--cache-directory={server / 'caches'}"]
        return Start(
            command=[str(server / "bin" / "tritonserver"), *folders, *arguments],
            environment={
                **os.environ,
                "PATH": f"{self.folder / 'bin'}:{os.environ.get('PATH', os.defpath)}",
                "LD_LIBRARY_PATH": f"{libraries}:{Path(site) / 'nvidia_pytriton.libs'}",
            },
        )


@dataclass(frozen=True)
class Start:
    command: list[str]
    environment: dict[str, str]


def installed() -> Installation | None:
    folder = os.environ.get(VARIABLE)
    return Installation(Path(folder)) if folder else None
