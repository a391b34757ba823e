"""``Repository``: from folders to snapshots. Every method blocks on the file system; none keeps state between calls."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from broker.repository import config_file, platforms, python_based
from broker.repository.backend_settings import BackendSettings
from broker.repository.completion import finish
from broker.repository.config_file import MAX_CONFIG_NBYTES, ModelConfigMessage
from broker.repository.fingerprint import source_digest, version_hashes
from broker.repository.host import Host
from broker.repository.labels import read_labels
from broker.repository.normalise import check_instance_groups, instance_plans, normalise, normalise_instance_groups
from broker.repository.overrides import check_model_name, remove_folder, write_files
from broker.repository.parameters import misspelt
from broker.repository.snapshot import Override, Snapshot
from broker.repository.validate import check_config, check_parameters, check_supported, without_effect
from broker.repository.versions import choose_versions, version_folders
from conch.errors import ConchError, Internal, InvalidArgument, NotFound, PollFailed, to_fault
from conch.messages import Fault

logger = logging.getLogger("conch.broker.repository")

DUPLICATE_REASON = "model appears in two or more repositories"


class Found(msgspec.Struct, frozen=True):
    """What all repositories hold: every model's folder name; which of them occur in more than one repository.

    ``complete`` False: a repository could not be read, so that a name that is missing is not gone for certain.
    """

    names: tuple[str, ...]
    duplicates: frozenset[str]
    complete: bool = True


class Repository:
    """The model repositories of a server.

    ``folders``: their paths. ``auto_complete``: models may lack a configuration or parts of it. ``config_name``: prefer
    ``configs/<config_name>.pbtxt``. ``overrides``: where files of load calls are written. ``backend_directory``: holds
    a folder per Python-based backend. No two calls may run at once
    for the same model; one thread for all is enough.
    """

    def __init__(
        self,
        folders: Sequence[str | os.PathLike[str]],
        overrides: str | os.PathLike[str],
        *,
        auto_complete: bool = True,
        config_name: str = "",
        host: Host | None = None,
        backend_settings: BackendSettings | None = None,
        backend_directory: str = "",
    ) -> None:
        self._folders = [Path(folder).absolute() for folder in folders]
        self._overrides = Path(overrides)
        self._auto_complete = auto_complete
        self._config_name = config_name
        self._host = host if host is not None else Host.detect()
        self._backend_settings = backend_settings or BackendSettings()
        self._backend_directory = os.path.abspath(backend_directory) if backend_directory else ""

    def check(self) -> None:
        """Raises ``NotFound`` if one of the repositories is not a readable folder; a server cannot start then."""
        for folder in self._folders:
            if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
                raise NotFound(f"failed to open the model repository {folder}: not a directory, or not readable")

    def find(self) -> Found:
        """The names of all models. A repository that cannot be read right now is left out, with a message."""
        found: set[str] = set()
        duplicates: set[str] = set()
        complete = True
        for folder in self._folders:
            names = self._model_folders(folder)
            if names is None:
                complete = False
                continue
            duplicates |= found & names
            found |= names
        return Found(tuple(sorted(found)), frozenset(duplicates), complete)

    def poll_all(self, known: Iterable[tuple[str, Override]] = ()) -> tuple[Found, dict[str, Snapshot | Fault]]:
        """Every model that is found. ``known`` are overrides that are in effect."""
        found = self.find()
        overrides = dict(known)
        names = (name for name in found.names if name not in found.duplicates)
        return found, {name: self.poll(name, overrides.get(name)) for name in names}

    def poll(self, name: str, override: Override | None = None) -> Snapshot | Fault:
        """One model as it is now, or why it cannot be read. Details go to the log: a client learns of some faults only
        that there was one."""
        try:
            return self._snapshot(name, override or Override())
        except ConchError as error:
            logger.error("Poll failed for model '%s': %s", name, error.message)
            return to_fault(error)
        except OSError as error:  # the folder changes while it is read, or is not ours to read
            logger.error("Poll failed for model '%s': %s", name, error)
            return Fault("PollFailed", f"failed to read the folder of model '{name}': {error.strerror}")
        except Exception as error:  # one model's folder, whatever is in it, must not keep the others from loading
            logger.exception("Poll failed for model '%s'", name)
            return to_fault(error)

    def digests(self, models: Iterable[tuple[str, str]]) -> dict[str, bytes]:
        """For each name, with the folder of its Python-based backend, a digest of what its author may have edited; none
        for a model that cannot be found."""
        digests = {}
        for name, backend_dir in models:
            folders = [folder / name for folder in self._folders if (folder / name).is_dir()]
            if len(folders) == 1:
                digests[name] = source_digest(str(folders[0]), backend_dir)
        return digests

    # ------------------------------------------------------------------------------------------------------- one model

    def _snapshot(self, name: str, override: Override) -> Snapshot:
        check_model_name(name)
        written = write_files(override, self._overrides)
        try:
            return self._read(name, written)
        except BaseException:
            if written.folder != override.folder:
                remove_folder(written.folder)
            raise

    def _read(self, name: str, override: Override) -> Snapshot:
        model_dir = override.folder or self._locate(name)
        config = self._read_config(model_dir, override.config)
        existing = version_folders(model_dir)
        if not config.name:
            config.name = name
        platforms.fill_in(config, _artifacts(model_dir, existing))
        backend_dir = python_based.folder(self._backend_directory, config)
        digest = source_digest(model_dir, backend_dir)  # before the rest: what is edited meanwhile is a change
        normalise(config)
        check_config(config)
        if config.name != name:
            raise InvalidArgument(
                f"unexpected directory name '{name}' for model '{config.name}', directory name must equal model name"
            )
        normalise_instance_groups(config, self._host)
        versions = choose_versions(config, existing)
        labels: dict[str, tuple[str, ...]] = {}
        fault = None
        try:
            if not versions:
                raise InvalidArgument(
                    f"at least one version must be available under the version policy of model '{name}'"
                )
            check_supported(config)
            check_parameters(config)
            python_based.check(config, backend_dir)
            check_instance_groups(config, self._host)
            labels = read_labels(config, model_dir)
            if not self._auto_complete:
                finish(config)
        except ConchError as error:
            fault = to_fault(error)
        ignored = without_effect(config)
        if ignored:
            logger.warning("model '%s' sets %s, which has no effect yet", name, ", ".join(ignored))
        backend = "python" if backend_dir else config.backend
        for key, meant in misspelt(config.parameters, backend).items():
            logger.warning("model '%s' has parameter %r, which Conch does not know; is %s meant?", name, key, meant)
        config_json = config_file.to_json(config)
        return Snapshot(
            name=name,
            config_json=config_json,
            config=config_file.decode(config_json),
            versions=versions,
            hashes=version_hashes(config, model_dir, versions, backend_dir),
            model_dir=model_dir,
            instances=instance_plans(config) if fault is None else (),
            complete=self._auto_complete,
            labels=labels,
            backend_config=self._backend_settings.for_backend(backend),
            backend_dir=backend_dir,
            digest=digest,
            fault=fault,
            override=override,
        )

    def _locate(self, name: str) -> str:
        places = [folder / name for folder in self._folders if (folder / name).is_dir()]
        if not places:
            raise PollFailed(f"failed to poll model '{name}': model not found in any model repository.")
        if len(places) > 1:
            raise PollFailed(f"failed to poll model '{name}': not unique across all model repositories")
        return str(places[0])

    def _read_config(self, model_dir: str, override: str) -> ModelConfigMessage:
        if override:
            try:
                return config_file.parse_json(override)
            except InvalidArgument as error:
                raise PollFailed(f"Invalid config override: {error.message}") from error
        path = self._config_path(model_dir)
        try:
            with open(path, "rb") as file:
                content = file.read(MAX_CONFIG_NBYTES + 1)
        except FileNotFoundError:
            if self._auto_complete:
                return config_file.parse_text("")
            raise PollFailed("failed to open text file for read config.pbtxt: No such file or directory") from None
        if len(content) > MAX_CONFIG_NBYTES:
            raise PollFailed(f"config.pbtxt is larger than {MAX_CONFIG_NBYTES} bytes")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise PollFailed(
                f"failed to read text proto from config.pbtxt: it is not UTF-8 ({error.reason})"
            ) from error
        return config_file.parse_text(text)

    def _config_path(self, model_dir: str) -> str:
        if self._config_name:
            custom = os.path.join(model_dir, "configs", f"{self._config_name}.pbtxt")
            if os.path.isfile(custom):
                return custom
        return os.path.join(model_dir, "config.pbtxt")

    def _model_folders(self, folder: Path) -> set[str] | None:
        try:
            with os.scandir(folder) as entries:
                names = {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
        except OSError as error:
            logger.error("failed to poll model repository '%s': %s", folder, error.strerror)
            return None
        return {name for name in names if _is_text(name)}


def _is_text(name: str) -> bool:
    """Whether a folder's name is UTF-8, as every model name in a message has to be."""
    try:
        name.encode()
    except UnicodeEncodeError:
        logger.error("ignore a folder whose name is not UTF-8: %r", name)
        return False
    return True


def _artifacts(model_dir: str, versions: Sequence[int]) -> set[str]:
    """Names in the first version's folder that holds any file."""
    for version in sorted(map(str, versions)):
        try:
            names = set(os.listdir(os.path.join(model_dir, version)))
        except OSError as error:
            raise Internal(f"failed to read version directory '{version}': {error.strerror}") from error
        if names:
            return names
    return set()
