"""SECURITY.md names the tests behind what it says: they are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text()
CLASSES = [f"S{number}" for number in range(1, 16)]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)))


def row(name: str) -> str:
    found = re.findall(rf"^\| \*\*{name}\*\* .*$", TEXT, re.MULTILINE)
    assert len(found) == 1, f"{name} has {len(found)} rows"
    return str(found[0])


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_a_row_and_a_test(name: str) -> None:
    cells = [cell.strip() for cell in row(name).strip("|").split("|")]
    assert len(cells) == 4
    assert all(cells)
    assert "`tests/" in cells[-1]


def test_there_is_no_row_of_another_class() -> None:
    assert re.findall(r"^\| \*\*(S\d+)\*\*", TEXT, re.MULTILINE) == CLASSES


@pytest.mark.parametrize(("file", "function"), NAMED, ids=["::".join(filter(None, each)) for each in NAMED])
def test_what_is_named_is_there(file: str, function: str) -> None:
    path = ROOT / file
    assert path.is_file()
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert any(name.startswith("test_") for name in functions)
    assert not function or function in functions


def test_every_test_of_security_is_named() -> None:
    """A file in ``tests/security`` that no row names proves nothing to a reader."""
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "security").glob("test_*.py")}
    assert files - {file for file, _ in NAMED} == set()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target
