"""What a repository knows about one model at one moment: plain, frozen, everything that loading it needs."""

import msgspec

from conch.messages import Fault
from conch.model_config import ModelConfig


class Override(msgspec.Struct, frozen=True):
    """What a load call puts in the place of the files on disk.

    ``config`` (JSON) replaces config.pbtxt. ``files`` maps ``<version>/<file>`` to contents and replaces the whole
    model folder; once written they are named by ``folder``, which is all that a later broker needs.
    """

    config: str = ""
    files: dict[str, bytes] = {}
    folder: str = ""

    def __bool__(self) -> bool:
        return bool(self.config or self.files or self.folder)


class InstancePlan(msgspec.Struct, frozen=True):
    """One model instance that is to run: ``kind`` is CPU, GPU or MODEL, ``device`` the GPU's number or 0."""

    name: str
    kind: str
    device: int


class Snapshot(msgspec.Struct, frozen=True):
    """A model as it was found, normalised and validated as far as that goes without asking its backend.

    ``config_json`` is canonical; ``config`` decodes it. ``versions`` are those that the version policy chose,
    ascending; ``hashes`` maps each to a digest of everything that makes a new worker of it differ from an old one,
    which leaves out instance groups and the version policy. ``complete``: the backend is asked to complete the
    configuration. ``labels`` maps an output to its lines. ``fault``: the model was read but cannot be loaded, and why.
    ``override`` is what was in effect, with its files written to ``override.folder``. ``backend_dir``: the folder of
    its Python-based backend. ``digest``: of what people edit, as ``Repository.digests`` has it.
    """

    name: str
    config_json: str
    config: ModelConfig
    versions: tuple[int, ...]
    hashes: dict[int, str]
    model_dir: str
    instances: tuple[InstancePlan, ...]
    complete: bool
    labels: dict[str, tuple[str, ...]] = {}
    backend_config: dict[str, str] = {}
    backend_dir: str = ""
    digest: bytes = b""
    fault: Fault | None = None
    override: Override = Override()
