"""Triton's protobuf messages, taken from the installed ``tritonclient`` package: no ``.proto`` is copied.

``tritonclient.grpc``'s own ``__init__`` imports grpc, asyncio and NumPy, 150 ms that a starting broker does not have.
So ``model_config_pb2``, which needs protobuf only (2 ms after protobuf's 25), is loaded from its file and registered
under its real name: a later ``import tritonclient.grpc`` finds that same module and shares its message classes.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_PACKAGE = "tritonclient.grpc"


def _load(name: str) -> ModuleType:
    qualified = f"{_PACKAGE}.{name}"
    loaded = sys.modules.get(qualified)
    if loaded is not None:
        return loaded
    if _PACKAGE in sys.modules:
        return importlib.import_module(qualified)
    return _load_file(name)


def _load_file(name: str) -> ModuleType:
    qualified = f"{_PACKAGE}.{name}"
    parent = importlib.util.find_spec("tritonclient")
    if parent is None or not parent.submodule_search_locations:
        raise ImportError("the package tritonclient is missing; install it with: pip install 'tritonclient[grpc]'")
    path = Path(parent.submodule_search_locations[0], "grpc", f"{name}.py")
    spec = importlib.util.spec_from_file_location(qualified, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"this version of the package tritonclient has no grpc/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[qualified] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[qualified]
        raise
    return module


#: the module ``tritonclient.grpc.model_config_pb2``: ``ModelConfig`` and everything in it
model_config_pb2 = _load("model_config_pb2")


def load_service_pb2() -> ModuleType:
    """The module ``tritonclient.grpc.service_pb2``: the messages of ``GRPCInferenceService``. 10 ms the first time."""
    if f"{_PACKAGE}.service_pb2" in sys.modules or _PACKAGE in sys.modules:
        return _load("service_pb2")
    # it imports model_config_pb2 from its package, which must not be run for that
    package = ModuleType(_PACKAGE)
    package.model_config_pb2 = model_config_pb2  # type: ignore[attr-defined]
    sys.modules[_PACKAGE] = package
    try:
        return _load_file("service_pb2")
    finally:
        if sys.modules.get(_PACKAGE) is package:
            del sys.modules[_PACKAGE]
