"""Models that ask models, with the whole server: every script runs inside of a model."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http

from conch.run_dir import RunDir
from tests.scenarios import bls_models
from tests.scenarios.bls_models import TIMEOUT_S, Run
from tests.scenarios.harness import Server, serving

DECOUPLED_REFUSED = (
    "Model count is using the decoupled. The current BLS request call doesn't support models using the decoupled "
    "transaction policy. Please use 'decoupled=True' argument to the 'exec' or 'async_exec' calls for decoupled "
    "models.'"
)


@pytest.fixture(scope="module")
def bls_server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("bls")
    bls_models.write_script(repository, count=2)
    bls_models.write(repository, "double", bls_models.DOUBLE, count=2)
    bls_models.write(repository, "count", bls_models.COUNT, decoupled=True)
    bls_models.write(repository, "error", bls_models.ERROR)
    for name, following in (("first", "second"), ("second", "third"), ("third", "double"), ("circle", "circle")):
        more = f'parameters {{ key: "next" value {{ string_value: "{following}" }} }}'
        bls_models.write(repository, name, bls_models.PASS_ON, more=more)
    bls_models.write(repository, "absent", bls_models.DOUBLE)
    impatient = """
        max_batch_size: 1
        dynamic_batching {
            default_queue_policy { allow_timeout_override: true default_timeout_microseconds: 10000000 }
        }
    """
    bls_models.write(repository, "impatient", bls_models.DOUBLE, more=impatient)
    names = ("script", "double", "count", "error", "first", "second", "third", "circle", "impatient")
    flags = ["--model-control-mode=explicit", *(f"--load-model={name}" for name in names)]
    with serving([repository], make_run_dir(), *flags) as server:
        yield server


@pytest.fixture
def run(bls_server: Server) -> Iterator[Run]:
    with bls_models.scripts(bls_server.url) as run:
        yield run


# ---------------------------------------------------------------------------------------------------------- exec


def test_a_model_asks_another(run: Run) -> None:
    assert run("result = shown(ask('double'))") == [[2, 4, 6]]


def test_what_is_asked_arrives(run: Run) -> None:
    about = run(
        """
        response = ask(
            "double", request_id="me", correlation_id=7, flags=3, timeout=5_000_000,
            parameters={"a": 1, "b": True, "c": "x", "d": 1.5}, model_version=1,
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_GPU, 0), trace=request.trace(),
        )
        result = json.loads(response.parameters())
        """
    )
    parameters = json.loads(about.pop("parameters"))
    assert parameters == {"a": 1, "b": True, "c": "x", "d": 1.5}
    assert about == {"id": "me", "correlation_id": 7, "flags": 3, "timeout": 5_000_000, "outputs": "OUT", "trace": ""}


def test_arguments_by_position(run: Run) -> None:
    code = "result = shown(pb_utils.InferenceRequest('', 0, [ints(4)], ['OUT'], 'double').exec())"
    assert run(code) == [[8]]


def test_the_answer_is_private_and_writable(run: Run) -> None:
    assert run(
        """
        tensor = ints(1, 2)
        array = ask("double", tensor).output_tensors()[0].as_numpy()
        array += 1
        result = [array.tolist(), tensor.as_numpy().tolist()]
        """
    ) == [[3, 5], [1, 2]]


@pytest.mark.parametrize("count", [3, 100_000])
def test_outputs_are_passed_on(run: Run, count: int) -> None:
    """Small ones as copies, large ones by reference."""
    assert run(
        f"""
        first = ask("double", pb_utils.Tensor("IN", np.arange({count}, dtype=np.int32))).output_tensors()[0]
        second = ask("double", pb_utils.Tensor.from_dlpack("IN", first)).output_tensors()[0]
        array = second.as_numpy()
        result = [array.size, bool((array == 4 * np.arange({count})).all())]
        """
    ) == [count, True]


@pytest.mark.parametrize("count", [3, 4 << 20])
def test_a_chain_of_three(bls_server: Server, count: int) -> None:
    values = np.arange(count, dtype=np.int32)
    given = tritonclient.http.InferInput("IN", [count], "INT32")
    given.set_data_from_numpy(values)
    with tritonclient.http.InferenceServerClient(bls_server.url, network_timeout=TIMEOUT_S) as client:
        for _ in range(3):
            assert np.array_equal(client.infer("first", [given]).as_numpy("OUT"), values * 2)


def test_from_a_thread_of_the_model(run: Run) -> None:
    assert (
        run(
            """
        result = []
        threads = [threading.Thread(target=lambda: result.append(shown(ask("double")))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        """
        )
        == [[[2, 4, 6]]] * 4
    )


def test_a_callee_that_answers_with_an_error(run: Run) -> None:
    assert run("result = shown(ask('error'))") == [2, "no good"]
    assert run("result = [shown(each) for each in ask('error', decoupled=True)]") == [[2, "no good"]]


@pytest.mark.parametrize("name", ["nowhere", "absent"])
def test_a_model_that_is_not_ready(run: Run, name: str) -> None:
    code, text = run(f"result = shown(ask('{name}'))")
    assert code == 4 and text.startswith(f"Failed for execute the inference request. Model '{name}' is not ready.")
    assert f"Error when running inference: Request for unknown model: '{name}'" in text
    assert run(f"result = [shown(each) for each in ask('{name}', decoupled=True)]") == [[code, text]]


def test_a_version_that_is_not_there(run: Run) -> None:
    code, text = run("result = shown(ask('double', model_version=9))")
    assert code == 4 and "Model 'double' is not ready" in text


@pytest.mark.parametrize(
    ("request_text", "text"),
    [
        ("ask('double', ints(1), ints(2))", "'IN'"),
        ("ask('double', pb_utils.Tensor('OTHER', np.zeros(1, np.int32)))", "unexpected inference input 'OTHER'"),
        ("ask('double', pb_utils.Tensor('IN', np.zeros(1, np.float32)))", "expects 'INT32'"),
        ("ask('double', pb_utils.Tensor('IN', np.zeros((1, 1), np.int32)))", "shape"),
        (
            "pb_utils.InferenceRequest(model_name='double', inputs=[], requested_output_names=['OUT']).exec()",
            "expected 1 inputs but got 0 inputs for model 'double'",
        ),
        (
            "pb_utils.InferenceRequest(model_name='double', inputs=[ints(1)], requested_output_names=['NO']).exec()",
            "unexpected inference output 'NO' for model 'double'",
        ),
    ],
)
def test_a_wrong_request_is_answered_with_an_error(run: Run, request_text: str, text: str) -> None:
    code, found = run(f"result = shown({request_text})")
    assert code == 3 and text in found


def test_a_queue_timeout(run: Run) -> None:
    first, second = run(
        """
        async def main():
            tensor = pb_utils.Tensor("IN", np.ones((1, 1), np.int32))
            first = request_to("impatient", tensor, parameters={"ms": 500}).async_exec()
            second = request_to("impatient", tensor, timeout=50_000).async_exec()
            return [shown(each) for each in await asyncio.gather(first, second)]
        result = asyncio.run(main())
        """
    )
    assert first == [[[2]]]
    assert second[0] == 4 and "Request timeout expired" in second[1]


# ---------------------------------------------------------------------------------------------------- async_exec


def test_several_at_once(run: Run) -> None:
    assert run(
        """
        async def main():
            asked = [request_to("double", ints(number)).async_exec() for number in range(20)]
            return [shown(each) for each in await asyncio.gather(*asked)]
        result = asyncio.run(main())
        """
    ) == [[[2 * number]] for number in range(20)]


def test_decoupled_at_once(run: Run) -> None:
    assert (
        run(
            """
        async def main():
            asked = [request_to("count").async_exec(decoupled=True) for number in range(5)]
            return [[shown(each) for each in responses] for responses in await asyncio.gather(*asked)]
        result = asyncio.run(main())
        """
        )
        == [[[[0]], [[1]], [[2]], []]] * 5
    )


def test_async_for(run: Run) -> None:
    assert (
        run(
            """
        async def main():
            responses = await request_to("count").async_exec(decoupled=True)
            once = [shown(each) async for each in responses]
            return once, [shown(each) async for each in responses]
        result = asyncio.run(main())
        """
        )
        == [[[[0]], [[1]], [[2]], []]] * 2
    )


def test_a_task_that_is_cancelled(run: Run, bls_server: Server) -> None:
    assert run(
        """
        async def main():
            never = asyncio.ensure_future(request_to("double").async_exec())
            never.cancel()
            slow = request_to("double", parameters={"ms": 300}).async_exec()
            try:
                await asyncio.wait_for(slow, 0.05)
            except asyncio.TimeoutError:
                pass
            return [slow.cancelled(), shown(await request_to("double").async_exec())]
        result = asyncio.run(main())
        """
    ) == [True, [[2, 4, 6]]]


def test_async_exec_needs_a_loop(run: Run) -> None:
    assert "RuntimeError: no running event loop" in run("result = raised(lambda: request_to('double').async_exec())")


# ---------------------------------------------------------------------------------------------- decoupled callees


def test_a_decoupled_callee(run: Run) -> None:
    assert run("result = [shown(each) for each in ask('count', decoupled=True)]") == [[[0]], [[1]], [[2]], []]


def test_the_final_flag_on_the_last_response(run: Run) -> None:
    code = "result = [shown(each) for each in ask('count', decoupled=True, parameters={'with_final': True})]"
    assert run(code) == [[[0]], [[1]], [[2]]]


def test_no_responses(run: Run) -> None:
    assert run("result = [shown(each) for each in ask('count', decoupled=True, parameters={'count': 0})]") == [[]]


def test_an_error_in_the_middle(run: Run) -> None:
    code = "result = [shown(each) for each in ask('count', decoupled=True, parameters={'error_at': 1})]"
    assert run(code) == [[[0]], [1, "in the middle"], [[2]], []]


def test_a_decoupled_callee_needs_the_flag(run: Run) -> None:
    assert run("result = shown(ask('count'))") == [5, DECOUPLED_REFUSED]


def test_an_ordinary_callee_with_the_flag(run: Run) -> None:
    assert run("result = [shown(each) for each in ask('double', decoupled=True)]") == [[[2, 4, 6]]]


def test_iterating_again(run: Run) -> None:
    assert run(
        """
        responses = ask("count", decoupled=True)
        first = shown(next(responses))
        rest = [shown(each) for each in responses]
        try:
            next(responses)
            stopped = False
        except StopIteration:
            stopped = True
        again = [shown(each) for each in responses]
        result = [first, rest, stopped, again]
        """
    ) == [[[0]], [[[1]], [[2]], []], True, [[[0]], [[1]], [[2]], []]]


def test_more_responses_than_may_be_under_way(run: Run) -> None:
    """Large ones, kept without having been looked at: the callee's memory is not what they lie in."""
    assert run(
        """
        options = {"count": 200, "size": 100_000}
        kept = list(ask("count", decoupled=True, parameters=options))
        values = [each.output_tensors()[0].as_numpy() for each in kept[:-1]]
        result = [len(kept), all(bool((value == number).all()) for number, value in enumerate(values))]
        """
    ) == [201, True]


def test_responses_that_were_too_many_are_not_kept(run: Run) -> None:
    length, again = run(
        """
        options = {"count": 200, "size": 100_000}
        responses = ask("count", decoupled=True, parameters=options)
        length = sum(1 for _ in responses)
        try:
            again = len(list(responses))
        except pb_utils.TritonModelException as error:
            again = str(error)
        result = [length, again]
        """
    )
    assert length == 201 and "cannot be iterated over again" in again


def test_an_iterator_that_is_dropped_lets_the_callee_finish(run: Run) -> None:
    assert run(
        """
        next(ask("count", decoupled=True, parameters={"count": 1000}))
        result = [shown(each) for each in ask("count", decoupled=True)]
        """
    ) == [[[0]], [[1]], [[2]], []]


def test_cancelling(run: Run, bls_server: Server) -> None:
    first, rest = run(
        """
        responses = ask("count", decoupled=True, parameters={"count": 100_000, "ms": 1})
        first = shown(next(responses))
        responses.cancel()
        result = [first, [shown(each) for each in responses]]
        """
    )
    assert first == [[0]]
    assert rest[-1] == [7, "the request was cancelled by the model that sent it"]
    # its only instance takes this once it has seen the cancellation
    assert run("result = [shown(each) for each in ask('count', decoupled=True)]") == [[[0]], [[1]], [[2]], []]
    log = RunDir(bls_server.run_dir).model_logs / "count.log"
    assert "cancelled" in log.read_text()


# ------------------------------------------------------------------------------------------------------ and besides


def test_outside_of_execute(run: Run) -> None:
    expected = "TritonModelException: BLS is only supported during the 'execute' function."
    assert run("result = model.in_initialize") == expected


def test_a_circle_is_an_error(bls_server: Server) -> None:
    given = tritonclient.http.InferInput("IN", [1], "INT32")
    given.set_data_from_numpy(np.zeros(1, np.int32))
    with tritonclient.http.InferenceServerClient(bls_server.url, network_timeout=TIMEOUT_S) as client:
        with pytest.raises(tritonclient.http.InferenceServerException, match="circle"):
            client.infer("circle", [given])


def test_readiness(run: Run) -> None:
    assert run(
        """
        result = [
            pb_utils.is_model_ready("double"),
            pb_utils.is_model_ready("double", "1"),
            pb_utils.is_model_ready("double", "2"),
            pb_utils.is_model_ready(model_name="absent"),
            pb_utils.is_model_ready("nowhere"),
        ]
        """
    ) == [True, True, False, False, False]
    text = run("result = raised(lambda: pb_utils.is_model_ready('double', 'x'))")
    assert text.startswith("TritonModelException: Failed to check model readiness:") and "'x'" in text


def test_a_model_loads_and_unloads_another(run: Run) -> None:
    assert run(
        """
        steps = []
        pb_utils.load_model("absent")
        steps.append([pb_utils.is_model_ready("absent"), shown(ask("absent"))])
        pb_utils.unload_model("absent")
        steps.append(pb_utils.is_model_ready("absent"))
        result = steps
        """
    ) == [[True, [[2, 4, 6]]], False]


def test_a_model_made_of_given_files(run: Run) -> None:
    assert run(
        """
        code = '''
        import triton_python_backend_utils as pb_utils
        class TritonPythonModel:
            def execute(self, requests):
                return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", r.inputs()[0].as_numpy() + 1)])
                        for r in requests]
        '''
        import textwrap
        config = {
            "backend": "python",
            "input": [{"name": "IN", "data_type": "TYPE_INT32", "dims": [-1]}],
            "output": [{"name": "OUT", "data_type": "TYPE_INT32", "dims": [-1]}],
        }
        files = {"file:1/model.py": textwrap.dedent(code).encode()}
        pb_utils.load_model("made", json.dumps(config), files)
        result = shown(ask("made"))
        pb_utils.unload_model("made")
        """
    ) == [[2, 3, 4]]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("pb_utils.load_model('nowhere')", "TritonModelException: Failed to load model: "),
        ("pb_utils.load_model('double', '{bad')", "TritonModelException: Failed to load model: "),
        ("pb_utils.load_model('double', '', {'file:1/model.py': b''})", "TritonModelException: Failed to load model: "),
        ("pb_utils.load_model('double', '{}', {'1/model.py': b''})", "the keys of files begin with 'file:'"),
        ("pb_utils.load_model('double', '{}', {'file:1/model.py': 'x'})", "TypeError: load_model expects the contents"),
        ("pb_utils.load_model('double', '{}', [])", "files should be a dictionary of file paths and file contents"),
    ],
)
def test_what_cannot_be_loaded(run: Run, call: str, text: str) -> None:
    assert text in run(f"result = raised(lambda: {call})")
    assert run("result = shown(ask('double'))") == [[2, 4, 6]]
