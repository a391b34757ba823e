"""The import table of the design, asserted by reading every import statement."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: which of our packages a package may import, besides itself
ALLOWED = {
    "conch": set[str](),
    "shm": {"conch"},
    "broker": {"conch", "shm"},
    "workers": {"conch", "shm"},
    "frontends": {"conch", "shm"},
}
#: the one part of conch that is no leaf: what every requester needs
REQUESTER = "conch/requester"
#: of conch, everything but the command line is shared by the other packages
NOT_SHARED = ("conch.cli", "conch.__main__")
#: they execute what they read
FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "multiprocessing.shared_memory"}
#: these run inside a model's own environment as well, whose Python may be older
IN_MODEL_ENVIRONMENTS = ("shm", "workers")

FILES = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that the file imports, also inside functions."""
    tree = ast.parse(path.read_text(), str(path))
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, node.module or "")).strip(".")
            yield node.lineno, module
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def _is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_table(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    wrong = []
    for line, name in imports(path):
        top = name.split(".")[0]
        foreign = top in ALLOWED and top != package
        of_requester = path.relative_to(ROOT).as_posix().startswith(REQUESTER) and top == "shm"
        if foreign and top not in ALLOWED[package] and not of_requester:
            wrong.append(f"{path.name}:{line}: {package} may not import {name}")
        if package in ("shm", "broker") and _is_in(name, "conch.requester"):
            wrong.append(f"{path.name}:{line}: {package} sends no requests")
        if package != "conch" and any(_is_in(name, module) for module in NOT_SHARED):
            wrong.append(f"{path.name}:{line}: {name} belongs to the command line")
        if any(_is_in(name, module) for module in FORBIDDEN):
            wrong.append(f"{path.name}:{line}: {name} executes or unlinks what it is given")
        if top in ("tests", "examples", "benchmarks", "__future__"):
            wrong.append(f"{path.name}:{line}: {name} is not for here")
    assert not wrong


def test_leaf_modules_do_not_import_the_command_line() -> None:
    leaves = [path for path in (ROOT / "conch").rglob("*.py") if "cli" not in path.parts and path.name != "__main__.py"]
    found = [(path.name, name) for path in leaves for _, name in imports(path) if _is_in(name, "conch.cli")]
    assert not found


@pytest.mark.parametrize("package", [*IN_MODEL_ENVIRONMENTS, "conch"])
def test_what_runs_in_a_model_s_environment_is_python_3_10(package: str) -> None:
    for path in FILES:
        if path.relative_to(ROOT).parts[0] == package and "cli" not in path.parts:
            ast.parse(path.read_text(), str(path), feature_version=(3, 10))


def test_a_worker_s_modules_need_little() -> None:
    """Loading a framework, an event loop or a web server is for those who need it."""
    heavy = ("aiohttp", "grpc", "onnxruntime", "torch", "tritonclient", "uvloop", "supervisor")
    for path in FILES:
        parts = path.relative_to(ROOT).parts
        if parts[0] in ("workers", "shm") or (parts[0] == "conch" and "cli" not in parts):
            tree = ast.parse(path.read_text())
            for node in tree.body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                assert not any(_is_in(name, module) for name in names for module in heavy), path


def test_the_shipped_supervisord_conf_is_the_one_at_the_top() -> None:
    assert (ROOT / "conch" / "supervisord.conf").resolve() == ROOT / "supervisord.conf"
