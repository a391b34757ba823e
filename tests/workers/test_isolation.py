"""A model's own modules, whatever they are called."""

from pathlib import Path

import numpy as np
import pytest

from tests.workers.harness import Stage, ints
from tests.workers.test_python_model import model

OURS = ("broker", "conch", "frontends", "shm", "workers")


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("name", OURS)
def test_a_module_with_the_name_of_one_of_ours(stage: Stage, name: str) -> None:
    code = f"import {name}\nimport {name}_package.inner\n" + model(
        f"response = InferenceResponse([Tensor('OUT', x + {name}.VALUE)])"
    )
    config = stage.model("clash", code)
    write(
        stage.path / "models" / "clash" / "1",
        {f"{name}.py": "VALUE = 5", f"{name}_package/inner.py": ""},
    )
    worker = stage.ready(config)
    assert np.array_equal(stage.ask(worker, "clash", ints(1)), ints(6))
    big = np.arange(1_000_000, dtype=np.int32)[None]
    assert np.array_equal(stage.ask(worker, "clash", big), big + 5)


def test_packages_with_the_names_of_ours(stage: Stage) -> None:
    code = "".join(f"from {name}.deeper import one as {name}_one\n" for name in OURS) + model(
        "total = " + " + ".join(f"{name}_one.VALUE" for name in OURS) + "\n"
        "response = InferenceResponse([Tensor('OUT', x + total)])"
    )
    config = stage.model("packages", code)
    write(
        stage.path / "models" / "packages" / "1",
        {
            f"{name}/{file}": text
            for name in OURS
            for file, text in (("__init__.py", ""), ("deeper/one.py", "VALUE = 1"))
        },
    )
    worker = stage.ready(config)
    assert np.array_equal(stage.ask(worker, "packages", ints(1)), ints(6))


def test_helpers_beside_the_model(stage: Stage) -> None:
    code = """
from . import relative
from .relative import VALUE
import helper
import of_the_model
""" + model("response = InferenceResponse([Tensor('OUT', x + VALUE + helper.VALUE + of_the_model.VALUE)])")
    config = stage.model("helped", code, {"default_model_filename": "model.py"})
    write(
        stage.path / "models" / "helped",
        {"1/relative.py": "VALUE = 1", "1/helper.py": "VALUE = 10", "of_the_model.py": "VALUE = 100"},
    )
    worker = stage.ready(config)
    assert np.array_equal(stage.ask(worker, "helped", ints(1)), ints(112))


def test_a_version_folder_that_is_a_package(stage: Stage) -> None:
    code = "from .relative import VALUE\nfrom . import OF_THE_PACKAGE\n" + model(
        "response = InferenceResponse([Tensor('OUT', x + VALUE + OF_THE_PACKAGE)])"
    )
    config = stage.model("package", code)
    write(
        stage.path / "models" / "package" / "1",
        {"__init__.py": "from .relative import VALUE\nOF_THE_PACKAGE = VALUE + 1", "relative.py": "VALUE = 1"},
    )
    worker = stage.ready(config)
    assert np.array_equal(stage.ask(worker, "package", ints(1)), ints(4))


def test_processes_and_pools_of_a_model(stage: Stage) -> None:
    code = "import multiprocessing\nfrom concurrent.futures import ThreadPoolExecutor\nimport helper\n" + model("""
with multiprocessing.get_context("spawn").Pool(1) as pool:
    doubled = pool.map(helper.double, [int(x[0, 0])])
with ThreadPoolExecutor(2) as threads:
    doubled += list(threads.map(helper.double, [1]))
response = InferenceResponse([Tensor("OUT", np.array([doubled], np.int32))])
""")
    config = stage.model("pools", code)
    write(stage.path / "models" / "pools" / "1", {"helper.py": "def double(x):\n    return 2 * x\n"})
    worker = stage.ready(config)
    assert np.array_equal(stage.ask(worker, "pools", ints(4)), ints(8, 2))


def test_random_numbers_differ_between_workers(stage: Stage) -> None:
    code = "import random\n" + model("""
drawn = [[random.getrandbits(31), np.random.randint(1 << 31)]]
response = InferenceResponse([Tensor("OUT", np.array(drawn, np.int64))])
""")
    config = stage.model("dice", code)
    first, second = [stage.ask(stage.ready(config), "dice", ints(1)) for _ in range(2)]
    assert (first != second).all()


def test_a_matrix_product_uses_all_cores(stage: Stage) -> None:
    """BLAS threads end before a fork; they have to come back in the worker."""
    worker = stage.ready(
        stage.model(
            "blas",
            model("""
a = np.ones((700, 700))
assert (a @ a)[0, 0] == 700
response = InferenceResponse([Tensor("OUT", np.array([[len(os.listdir("/proc/self/task"))]], np.int32))])
"""),
        )
    )
    threads = int(stage.ask(worker, "blas", ints(1))[0, 0])
    assert threads >= 4  # main, control, and two of ZeroMQ
