"""Models that ask models, in servers of their own: callees that die, loading when a model begins and ends, and inputs
that outlive their request."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http

from conch.run_dir import RunDir
from tests.scenarios import bls_models

TIMEOUT_S = 20.0


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_callee_that_dies(serve: Any, tmp_path: Path, decoupled: bool) -> None:
    bls_models.write_script(tmp_path)
    bls_models.write(tmp_path, "die", bls_models.DIE, decoupled=decoupled)
    server = serve(tmp_path)
    given = tritonclient.http.InferInput("CODE", [1], "BYTES")
    code = f"result = [shown(each) for each in ask('die', decoupled={decoupled})] if {decoupled} else shown(ask('die'))"
    given.set_data_from_numpy(np.array([code.encode()], np.object_))
    with tritonclient.http.InferenceServerClient(server.url, network_timeout=TIMEOUT_S) as client:
        answer = json.loads(client.infer("script", [given]).as_numpy("RESULT")[0])
    if decoupled:
        assert answer[0] == [[0]] and len(answer) == 2
    code, text = answer[-1] if decoupled else answer
    assert code == 1 and "die" in text


def test_loading_in_initialize_and_asking_in_finalize(serve: Any, tmp_path: Path) -> None:
    bls_models.write(tmp_path, "double", bls_models.DOUBLE)
    loads = """
class TritonPythonModel:
    def initialize(self, args):
        pb_utils.load_model("double")
        assert pb_utils.is_model_ready("double")

    def execute(self, requests):
        return [pb_utils.InferenceResponse(ask("double", *r.inputs()).output_tensors()) for r in requests]

    def finalize(self):
        print("in finalize:", raised(lambda: ask("double")), flush=True)
        pb_utils.unload_model("double")
"""
    bls_models.write(tmp_path, "loads", loads)
    server = serve(tmp_path, "--model-control-mode=explicit", "--load-model=loads")
    given = tritonclient.http.InferInput("IN", [1], "INT32")
    given.set_data_from_numpy(np.ones(1, np.int32))
    with tritonclient.http.InferenceServerClient(server.url, network_timeout=TIMEOUT_S) as client:
        assert client.infer("loads", [given]).as_numpy("OUT").tolist() == [2]
        client.unload_model("loads")
        index: dict[str, Any] = {}
        while index.get("loads") != "UNAVAILABLE":
            index = {each["name"]: each.get("state") for each in client.get_model_repository_index()}
    log = (RunDir(server.run_dir).model_logs / "loads.log").read_text()
    assert "in finalize: TritonModelException: BLS is only supported during the 'execute' function." in log


def test_read_only_inputs_that_outlive_their_request(serve: Any, tmp_path: Path) -> None:
    """Their memory stays as it is until the model lets go of them: here when it gets a small input."""
    keeps = """
class TritonPythonModel:
    def initialize(self, args):
        self.kept = []

    def execute(self, requests):
        responses = []
        for request in requests:
            array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            if array.size == 1:
                self.kept.clear()
            else:
                self.kept.append(array[1:])
            state = [int(array.flags.writeable), *(int(each[0]) for each in self.kept)]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array(state, np.int32))]))
        return responses
"""
    more = 'parameters { key: "READ_ONLY_INPUT_TENSORS" value { string_value: "yes" } }'
    bls_models.write(tmp_path, "keeps", keeps, more=more)
    server = serve(tmp_path, "--model-control-mode=explicit", "--load-model=*")
    with tritonclient.http.InferenceServerClient(server.url, network_timeout=TIMEOUT_S) as client:

        def ask(values: np.ndarray[Any, Any]) -> list[int]:
            given = tritonclient.http.InferInput("IN", [len(values)], "INT32")
            given.set_data_from_numpy(values)
            state = client.infer("keeps", [given]).as_numpy("OUT")
            assert state is not None
            return state.tolist()  # type: ignore[no-any-return]

        for number in range(1, 6):
            assert ask(np.full(1 << 20, number, np.int32)) == [0, *range(1, number + 1)]
        assert ask(np.zeros(1, np.int32)) == [0]
        for number in range(1, 4):
            assert ask(np.full(1 << 20, number, np.int32)) == [0, *range(1, number + 1)]
        # what it still keeps holds up neither an unload nor the server's exit
        client.unload_model("keeps")
        while [model for model in client.get_model_repository_index() if model.get("state") != "UNAVAILABLE"]:
            pass
        client.load_model("keeps")
        assert ask(np.full(1 << 20, 7, np.int32)) == [0, 7]


def test_a_callee_reads_inputs_of_a_request_that_has_been_answered(serve: Any, tmp_path: Path) -> None:
    """The caller answers at once; what it was sent stays until the model that it has asked has read it."""
    leaves = """
class TritonPythonModel:
    def initialize(self, args):
        self.threads = []
        self.results = []

    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "IN")
            if tensor.shape() == [1]:
                for thread in self.threads:
                    thread.join()
                state = sorted(self.results)
            else:
                asked = request_to("double", tensor, parameters={"ms": 200})
                self.threads.append(threading.Thread(target=self.ask, args=(asked,)))
                self.threads[-1].start()
                state = []
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array(state, np.int32))]))
        return responses

    def ask(self, asked):
        array = asked.exec().output_tensors()[0].as_numpy()
        self.results.append(int(array[0]) if (array == array[0]).all() else -1)
"""
    bls_models.write(tmp_path, "double", bls_models.DOUBLE)
    bls_models.write(tmp_path, "leaves", leaves)
    server = serve(tmp_path)
    with tritonclient.http.InferenceServerClient(server.url, network_timeout=TIMEOUT_S) as client:
        for values in (*(np.full(1 << 20, number, np.int32) for number in range(1, 5)), np.zeros(1, np.int32)):
            given = tritonclient.http.InferInput("IN", [len(values)], "INT32")
            given.set_data_from_numpy(values)
            answer = client.infer("leaves", [given]).as_numpy("OUT")
    assert answer is not None and answer.tolist() == [2, 4, 6, 8]
