"""The parts of ``scripts/client-examples`` that decide whether an example passed, and what is run at all."""

from pathlib import Path

import pytest

from benchmarks.servers import Server
from scripts import client_examples
from scripts.client_example_table import EXAMPLES, PICTURE, Example, Runs
from scripts.client_examples import COUNTED_MODELS, MODELS, Outcome, left_out, run_example, server_models, table

SERVER = Server("Conch", "127.0.0.1:1", "127.0.0.1:2")


def run(folder: Path, code: str, runs: Runs = Runs.SERVING, limit_s: float = 20) -> Outcome:
    (folder / "example.py").write_text(code)
    example = Example("example.py", "gRPC", "", runs, ("--image", PICTURE))
    return run_example(example, folder, SERVER, Path("picture.ppm"), limit_s)


def test_an_example_that_passes_is_told_where_the_server_is(tmp_path: Path) -> None:
    arguments = ["--image", "picture.ppm", "-u", "127.0.0.1:2"]
    assert run(tmp_path, f"import sys\nassert sys.argv[1:] == {arguments}\nprint('PASS: all')").failure == ""


def test_an_example_with_ports_of_its_own_is_not_told(tmp_path: Path) -> None:
    code = "import sys\nassert len(sys.argv) == 3\nprint('PASS')"
    assert run(tmp_path, code, Runs.DEFAULT_PORTS).failure == ""


def test_failures(tmp_path: Path) -> None:
    assert run(tmp_path, "print('PASS')\nraise SystemExit(3)").failure == "exit status 3\nPASS\n"
    assert run(tmp_path, "print('channel creation failed')").failure.startswith("did not print 'PASS'\nchannel")
    hangs = run(tmp_path, "import time\nprint('so far', flush=True)\ntime.sleep(60)", limit_s=2)
    assert hangs.failure == "not done within 2 s\nso far\n"


def test_what_is_left_out_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new_client.py").write_text("")
    (tmp_path / "image_client.py").write_text("")
    monkeypatch.setattr(client_examples, "default_ports_free", lambda: True)
    reasons = left_out(tmp_path, sequences=False)
    assert reasons["new_client.py"] == "is not in scripts/client_example_table.py"
    assert reasons["simple_http_cudashm_client.py"] == "needs a GPU"
    assert reasons["simple_grpc_sequence_stream_infer_client.py"] == "needs sequences"
    assert "image_client.py" not in reasons and "memory_growth_test.py" not in reasons
    monkeypatch.setattr(client_examples, "default_ports_free", lambda: False)
    assert "taken" in left_out(tmp_path, sequences=False)["memory_growth_test.py"]


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no src/python/examples"):
        client_examples.examples_folder(tmp_path, tmp_path)


def test_repositories_of_the_examples_that_count_models(tmp_path: Path) -> None:
    for runs, count in ((Runs.SEVEN_MODELS, 7), (Runs.EIGHT_MODELS, 8)):
        found = sorted(path.parent.name for path in server_models(runs, tmp_path).glob("*/config.pbtxt"))
        assert len(found) == count
        assert set(COUNTED_MODELS) <= set(found)
    assert server_models(Runs.SERVING, tmp_path) == MODELS


def test_every_command_is_in_the_table_once() -> None:
    assert len({(example.command, example.runs) for example in EXAMPLES}) == len(EXAMPLES)


def test_table() -> None:
    example = Example("a.py", "HTTP", "all of it", arguments=("-x", "1"))
    assert table([Outcome(example, 1.25, ""), Outcome(example, 3, "exit status 1\n")])[2:] == [
        "| a.py -x 1 | HTTP | all of it | passed | 1.2 |",
        "| a.py -x 1 | HTTP | all of it | failed | 3.0 |",
    ]
