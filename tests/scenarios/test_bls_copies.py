"""What a chain of three models copies of tensors of 16 MiB, counted by the workers themselves."""

import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http

from benchmarks.python_models import write_chain
from tests.scenarios.conftest import Serve

NBYTES = 16 << 20
REQUESTS = 3
COPIED = re.compile(r'conch_copied_bytes_total\{model="(\w+)",purpose="(\w+)",version="1"\} (\S+)')


@pytest.mark.timeout(60)
def test_a_tensor_is_copied_where_user_code_asks_for_it_and_into_each_output(serve: Serve, tmp_path: Path) -> None:
    write_chain(tmp_path / "models")
    server = serve(tmp_path / "models")
    values = np.arange(NBYTES, dtype=np.uint8)
    given = tritonclient.http.InferInput("IN", [NBYTES], "UINT8")
    given.set_data_from_numpy(values)
    with tritonclient.http.InferenceServerClient(server.url, network_timeout=30) as client:
        for _ in range(REQUESTS):
            assert np.array_equal(client.infer("chain", [given]).as_numpy("OUT"), values + 2)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as page:
        found = {(model, purpose): float(count) for model, purpose, count in COPIED.findall(page.read().decode())}
    steps = [(model, purpose) for model in ("first_step", "second_step") for purpose in ("as_numpy", "output")]
    assert found == dict.fromkeys([("chain", "output"), *steps], REQUESTS * NBYTES)
