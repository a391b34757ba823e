"""Which backend a model belongs to, by Triton's rules: ``backend``, ``platform``, file name, or what its folder holds.

A configuration names its backend in up to three redundant ways; whatever is missing is filled in from the others. A
model without configuration is recognised by the artifact in its version folder, or else by its name's suffix.
"""

from collections.abc import Collection

import msgspec

from broker.repository.config_file import ModelConfigMessage
from conch.errors import InvalidArgument

ENSEMBLE = "ensemble"


class _Framework(msgspec.Struct, frozen=True):
    backend: str
    filename: str
    platforms: tuple[str, ...] = ()


#: in the order in which Triton looks for them; the first platform is the one filled in
_FRAMEWORKS = (
    _Framework("tensorrt", "model.plan", ("tensorrt_plan",)),
    _Framework("onnxruntime", "model.onnx", ("onnxruntime_onnx",)),
    _Framework("openvino", "model.xml"),
    _Framework("pytorch", "model.pt", ("pytorch_libtorch", "libtorch")),
    _Framework("pytorch", "model.pt2", ("torch_aoti",)),
    _Framework("python", "model.py"),
)


def fill_in(config: ModelConfigMessage, artifacts: Collection[str]) -> None:
    """Fills ``backend``, ``platform`` and ``default_model_filename`` in place; ``artifacts`` are the names of what lies
    in a version folder. Raises ``InvalidArgument`` if nothing tells the backend."""
    if config.platform == ENSEMBLE:
        return
    framework = _recognise(config, artifacts)
    if framework is None:
        if not (config.backend or config.platform or config.default_model_filename):
            _fill_from_name(config)
        return
    config.backend = framework.backend
    if not config.platform and framework.platforms:
        config.platform = framework.platforms[0]
    if not config.default_model_filename:
        config.default_model_filename = framework.filename


def check(config: ModelConfigMessage) -> None:
    """Refuses combinations of platform and backend that contradict each other. Raises ``InvalidArgument``."""
    if not config.backend:
        if config.platform != ENSEMBLE:
            raise InvalidArgument(f"unexpected platform type '{config.platform}' for {config.name}")
        return
    if config.platform == ENSEMBLE:
        raise InvalidArgument(
            f"Ensemble model '{config.name}' must have platform type 'ensemble' and empty backend type"
        )
    known = [platform for each in _FRAMEWORKS if each.backend == config.backend for platform in each.platforms]
    if known and config.platform not in known:
        raise InvalidArgument(f"unexpected 'platform' and 'backend' pair, got:{config.platform}, {config.backend}")


def _recognise(config: ModelConfigMessage, artifacts: Collection[str]) -> _Framework | None:
    nothing_said = not (config.platform or config.default_model_filename)
    for framework in _FRAMEWORKS:
        if config.backend:
            matches = config.backend == framework.backend and (
                not config.platform or not framework.platforms or config.platform in framework.platforms
            )
        else:
            matches = (
                config.platform in framework.platforms
                or config.default_model_filename == framework.filename
                or (nothing_said and framework.filename in artifacts)
            )
        if matches:
            return framework
    return None


def _fill_from_name(config: ModelConfigMessage) -> None:
    _, dot, backend = config.name.partition(".")
    if not dot:
        raise InvalidArgument(
            f"Invalid model name: Could not determine backend for model '{config.name}' with no backend in model "
            "configuration. Expected model name of the form 'model.<backend_name>'."
        )
    config.backend = backend
    config.default_model_filename = f"model.{backend}"
