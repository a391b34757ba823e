"""What no product code may do, by reading its syntax: run what it is given, call a shell, listen beyond this machine
unasked, compute sizes in integers that wrap around, or schedule by a clock that can be set."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("conch", "broker", "workers", "shm", "frontends")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

#: importing these is enough
MODULES = {
    *("pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"),
    *("multiprocessing.connection", "multiprocessing.managers", "xmlrpc.server", "socketserver", "http.server"),
    # nothing that a request names is fetched
    *("urllib.request", "http.client", "requests", "httpx", "aiohttp", "urllib3", "ftplib", "fsspec", "boto3"),
}
#: what is called, by its last name or its last two
CALLS = {
    *("eval", "exec", "compile", "__import__", "execfile"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("asyncio.create_subprocess_shell", "tempfile.mktemp"),
    *("send_pyobj", "recv_pyobj", "yaml.load", "numpy.load", "np.load", "torch.load"),
    # 0 for [2**33, 2**33]
    *("np.prod", "numpy.prod", "np.product", "np.cumprod", "numpy.cumprod", "np.multiply", "numpy.multiply"),
}
#: file and what: why
ALLOWED = {("conch/cli/status.py", "http.client"): "conch status asks supervisord, by a socket in the run directory"}
#: who may look at the wall clock: for statistics, log lines and responses' times, never to wait for something
WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}
SCHEDULING = ("broker/scheduling", "broker/lifecycle", "broker/exchange.py", "conch/requester", "workers/launching.py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an expression that is one, otherwise what of it is."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return ""


def found_in(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of everything that is banned."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names if name in MODULES)
        elif isinstance(node, ast.Call):
            parts = dotted(node.func).split(".")
            banned = {".".join(parts[-2:])} & CALLS
            if len(parts) == 1 or parts[-1] in ("recv_pyobj", "send_pyobj"):  # re.compile is another thing
                banned |= {parts[-1]} & CALLS
            yield from ((node.lineno, name) for name in banned)
            for keyword in node.keywords:
                if keyword.arg == "shell" and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    yield node.lineno, "shell="
                if keyword.arg == "allow_pickle":
                    yield node.lineno, "allow_pickle"


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """Line and value of every text, those inside f-strings too, that is no documentation."""
    tree = tree_of(path)
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


def test_nothing_that_is_banned() -> None:
    found = {(path.relative_to(ROOT).as_posix(), name): line for path in FILES for line, name in found_in(path)}
    assert found.keys() == ALLOWED.keys(), found


def test_no_shell_and_no_socket_for_others() -> None:
    """ZeroMQ speaks through files in the run directory only, and nothing is handed to a shell."""
    banned = ("tcp://", "ipc://@", "inproc://", "bash", "/bin/sh", "sh -c")
    # what conch serve prints in its help is for people
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text!r}"
        for path in FILES
        for line, text in literals(path)
        if any(text.startswith(each) or f" {each} " in text for each in banned)
    ]
    assert not found


@pytest.mark.parametrize("place", SCHEDULING)
def test_nothing_waits_by_a_clock_that_can_be_set(place: str) -> None:
    paths = [path for path in FILES if path.relative_to(ROOT).as_posix().startswith(place)]
    assert paths
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in paths
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and ".".join(dotted(node.func).split(".")[-2:]) in WALL_CLOCK
    ]
    assert not found
