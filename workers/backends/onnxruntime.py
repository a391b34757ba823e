"""ONNX models, run by onnxruntime on the CPU or, where it has CUDA, on a GPU.

The graph never writes to its inputs: a single request's inputs are views of shared memory, several requests' are put
together once, into buffers that are used again.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from conch import tensors
from conch.messages import Fault
from conch.model_config import ModelConfig, decode_config
from workers.backends import onnx_graph
from workers.backends.base import Array, Input, Instance, Item, LoadError, MissingFramework, Output, Result, Timing
from workers.backends.base import Backend as BaseBackend
from workers.backends.onnx_graph import DEFAULT_MAX_BATCH_SIZE, Graph

logger = logging.getLogger("conch.workers.backends.onnxruntime")

_CUDA = "CUDAExecutionProvider"
_FILE = "model.onnx"
#: of a batch's inputs; larger ones are allocated anew, so that an idle model does not keep them
_MOST_KEPT_NBYTES = 256 * 1024 * 1024
_BFLOAT16 = 16


class Options(NamedTuple):
    """What a session is made with; two configurations with the same options can share one."""

    file: Path
    graph_level: int
    parallel: bool
    intra_op_threads: int
    inter_op_threads: int
    memory_arena: bool
    memory_pattern: bool
    cuda: tuple[tuple[str, str], ...] | None


class Backend(BaseBackend):
    def __init__(self, instance: Instance) -> None:
        super().__init__(instance)
        try:
            import onnxruntime
        except ImportError as error:
            gpu = instance.kind == "KIND_GPU"
            raise MissingFramework(
                instance.model, "onnxruntime", "onnxruntime-gpu" if gpu else "onnxruntime"
            ) from error
        self._onnxruntime: Any = onnxruntime
        self._session: Any = None
        self._options: Options | None = None
        self._graph = Graph({}, {}, {})
        self._output_names: list[str] = []
        self._batched = False
        self._scalar_outputs: dict[str, tuple[int, ...]] = {}
        self._has_bf16 = False
        self._buffers: dict[str, Array] = {}

    # ------------------------------------------------------------------------------------------------- loading

    def complete_config(self) -> str:
        config = json.loads(self.instance.config)
        self._open(decode_config(self.instance.config))
        default = self.instance.backend_config.get("default-max-batch-size", str(DEFAULT_MAX_BATCH_SIZE))
        onnx_graph.complete(config, self._graph, self._integer("default-max-batch-size", default))
        return msgspec.json.encode(config).decode()

    def load(self) -> None:
        config = decode_config(self.instance.config)
        self._open(config)
        graph = self._graph
        onnx_graph.validate(config, graph)
        self._output_names = [output.name for output in config.output]
        self._batched = config.max_batch_size > 0
        self._scalar_outputs = {
            output.name: output.dims if output.reshape is None else output.reshape.shape
            for output in config.output
            if not graph.outputs[output.name].dims
        }
        self._has_bf16 = any(tensor.datatype == "BF16" for each in graph for tensor in each.values())

    def _open(self, config: ModelConfig) -> None:
        """A session for ``config``: the one that completion has made, if the options are still the same."""
        options = self._options_of(config)
        if options == self._options:
            return
        self._session = None
        self._session = self._make_session(options)
        self._options = options
        self._graph = onnx_graph.graph_of(self._session, self.instance.model)

    def _make_session(self, options: Options) -> Any:
        runtime = self._onnxruntime
        made = runtime.SessionOptions()
        levels = runtime.GraphOptimizationLevel
        made.graph_optimization_level = {
            -1: levels.ORT_ENABLE_BASIC,
            1: levels.ORT_ENABLE_EXTENDED,
            2: levels.ORT_DISABLE_ALL,
        }.get(options.graph_level, levels.ORT_ENABLE_ALL)
        mode = runtime.ExecutionMode
        made.execution_mode = mode.ORT_PARALLEL if options.parallel else mode.ORT_SEQUENTIAL
        made.intra_op_num_threads = options.intra_op_threads
        made.inter_op_num_threads = options.inter_op_threads
        made.enable_cpu_mem_arena = options.memory_arena
        made.enable_mem_pattern = options.memory_pattern
        providers: list[Any] = ["CPUExecutionProvider"]
        if options.cuda is not None:
            providers.insert(0, (_CUDA, dict(options.cuda)))
        try:
            return runtime.InferenceSession(str(options.file), made, providers=providers)
        except Exception as error:  # its exceptions have no base of their own
            text = str(error).replace(str(options.file), options.file.name)
            raise LoadError(f"unable to load model '{self.instance.model}': {text}") from error

    def _options_of(self, config: ModelConfig) -> Options:
        instance = self.instance
        file = Path(instance.version_dir, config.default_model_filename or _FILE)
        if file.is_dir():
            file /= _FILE
        if not file.is_file():
            shown = f"{instance.model}/{instance.version}/{file.relative_to(instance.version_dir)}"
            raise LoadError(f"unable to find '{shown}' for model instance '{instance.name}'")
        mode = self._integer("execution_mode", config.parameter("execution_mode", "0"))
        if mode not in (0, 1):
            raise LoadError(
                f"Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 but got {mode} ."
            )
        graph = json.loads(instance.config).get("optimization", {}).get("graph", {})
        return Options(
            file=file,
            graph_level=int(graph.get("level", 0)),
            parallel=mode == 1,
            intra_op_threads=self._threads(config, "intra_op_thread_count"),
            inter_op_threads=self._threads(config, "inter_op_thread_count"),
            memory_arena=self._boolean(config, "enable_mem_arena"),
            memory_pattern=self._boolean(config, "enable_mem_pattern"),
            cuda=self._cuda_options(config) if instance.kind == "KIND_GPU" else None,
        )

    def _cuda_options(self, config: ModelConfig) -> tuple[tuple[str, str], ...]:
        if _CUDA not in self._onnxruntime.get_available_providers():
            raise MissingFramework(self.instance.model, "onnxruntime with CUDA", "onnxruntime-gpu")
        if hasattr(self._onnxruntime, "preload_dlls"):
            self._onnxruntime.preload_dlls()  # finds CUDA where pip has put it
        options = {"device_id": str(self.instance.device)}
        searches = {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"}
        search = config.parameter("cudnn_conv_algo_search")
        if search:
            options["cudnn_conv_algo_search"] = searches.get(search, search)
        limit = config.parameter("gpu_mem_limit")
        if limit:
            options["gpu_mem_limit"] = limit
        return tuple(options.items())

    def _threads(self, config: ModelConfig, name: str) -> int:
        return max(0, self._integer(name, config.parameter(name, "0")))

    def _integer(self, name: str, text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise LoadError(
                f"unable to load model '{self.instance.model}': '{name}' must be a whole number, not '{text}'"
            ) from None

    def _boolean(self, config: ModelConfig, name: str) -> bool:
        text = config.parameter(name, "1").lower()
        if text in ("1", "true", "on"):
            return True
        if text in ("0", "false", "off"):
            return False
        raise LoadError(f"unable to load model '{self.instance.model}': '{name}' must be 0 or 1, not '{text}'")

    # ----------------------------------------------------------------------------------------------- executing

    def execute(self, items: list[Item], timing: Timing) -> Sequence[Result]:
        if len(items) == 1 or self._can_share_a_run(items):
            return self._run(items, timing)
        started_ns = timing.infer_start_ns
        results = [result for item in items for result in self._run([item], timing)]
        timing.infer_start_ns = started_ns
        return results

    def _can_share_a_run(self, items: list[Item]) -> bool:
        """The broker puts only requests of one shape into a batch; this does not depend on it."""
        if not self._batched:
            return False
        first, *others = [[(each.name, each.shape[1:]) for each in item.inputs] for item in items]
        return all(other == first for other in others)

    def _run(self, items: list[Item], timing: Timing) -> list[Result]:
        """One run for all ``items``. A failure is every item's."""
        sizes = [item.inputs[0].shape[0] for item in items] if self._batched and items[0].inputs else [1]
        try:
            feeds = {each.name: self._feed(position, items) for position, each in enumerate(items[0].inputs)}
            names = self._wanted(items)
            timing.infer_start_ns = time.monotonic_ns()
            arrays = self._infer(names, feeds)
            timing.infer_end_ns = time.monotonic_ns()
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            timing.infer_end_ns = time.monotonic_ns()
            logger.error("a batch of '%s' failed: %s", self.instance.name, error)
            fault = Fault("ModelError", f"onnx runtime error: {error}")
            return [Result(error=fault) for _ in items]
        if len(items) == 1:
            return [Result([self._output(name, array) for name, array in zip(names, arrays, strict=True)])]
        return self._split(items, sizes, names, arrays)

    def _wanted(self, items: list[Item]) -> list[str]:
        """The outputs that anybody in the batch wants, in the configuration's order."""
        wanted: set[str] = set()
        for item in items:
            if not item.request.outputs:
                return self._output_names
            wanted.update(item.request.outputs)
        return [name for name in self._output_names if name in wanted]

    def _infer(self, names: list[str], feeds: dict[str, Any]) -> list[Array]:
        if not self._has_bf16:
            return self._session.run(names, feeds)  # type: ignore[no-any-return]
        values = self._session.run_with_ort_values(names, {name: self._value(feed) for name, feed in feeds.items()})
        return [_array(value) for value in values]

    # -------------------------------------------------------------------------------------------------- inputs

    def _feed(self, position: int, items: list[Item]) -> Any:
        """One input of all items: a view for one item, assembled for several."""
        first = items[0].inputs[position]
        if len(items) == 1:
            return self._shaped(first, _read(first))
        if first.datatype == "BYTES":
            return np.concatenate([_read(item.inputs[position]) for item in items])
        rows = sum(item.inputs[position].shape[0] for item in items)
        whole = self._buffer(first.name, tensors.STORAGE_DTYPES[first.datatype], (rows, *first.shape[1:]))
        row = 0
        for item in items:
            each = item.inputs[position]
            whole[row : row + each.shape[0]] = _read(each)
            row += each.shape[0]
        return self._shaped(first, whole)

    def _shaped(self, described: Input, array: Array) -> Any:
        tensor = self._graph.inputs.get(described.name) or self._graph.initializers.get(described.name)
        if tensor is not None and not tensor.dims:
            array = array.reshape(())
        return (array, "BF16") if described.datatype == "BF16" else array

    def _buffer(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """Memory for an assembled input, warm from the last batch. No run keeps it."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > _MOST_KEPT_NBYTES:
            return np.empty(shape, dtype)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._buffers[name] = np.empty(nbytes, np.uint8)
        return buffer[:nbytes].view(dtype).reshape(shape)

    def _value(self, feed: Any) -> Any:
        """An OrtValue; BF16, which NumPy does not know, comes as a pair with its 16-bit patterns."""
        made = self._onnxruntime.OrtValue
        if isinstance(feed, tuple):
            return made.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(feed[0]), _BFLOAT16)
        return made.ortvalue_from_numpy(feed)

    # ------------------------------------------------------------------------------------------------- outputs

    def _output(self, name: str, array: Array) -> Output:
        datatype = self._graph.outputs[name].datatype
        shape = self._scalar_outputs.get(name, np.shape(array))
        if datatype == "BYTES":
            return Output(name, datatype, shape, tensors.elements_of(np.asarray(array, np.object_)))
        return Output(name, datatype, shape, np.asarray(array))

    def _split(self, items: list[Item], sizes: list[int], names: list[str], arrays: list[Array]) -> list[Result]:
        rows = sum(sizes)
        for name, array in zip(names, arrays, strict=True):
            if array.shape[:1] != (rows,):
                text = f"output '{name}' has shape {list(array.shape)}, which cannot be split into a batch of {rows}"
                return [Result(error=Fault("ModelError", text)) for _ in items]
        results = []
        row = 0
        for item, size in zip(items, sizes, strict=True):
            wanted = item.request.outputs or names
            outputs = [
                self._output(name, array[row : row + size])
                for name, array in zip(names, arrays, strict=True)
                if name in wanted
            ]
            results.append(Result(outputs))
            row += size
        return results


def _read(each: Input) -> Array:
    if each.datatype == "BYTES":
        texts: list[Any] = [element.decode() for element in tensors.unpack(each.data)]
        return tensors.object_array(texts, each.shape)
    return np.ndarray(each.shape, tensors.STORAGE_DTYPES[each.datatype], each.data)


def _array(value: Any) -> Array:
    """An output's array; BF16 as its 16-bit patterns, a view of the value's own memory."""
    if value.element_type() != _BFLOAT16:
        return value.numpy()  # type: ignore[no-any-return]
    interface = {"version": 3, "typestr": "<u2", "shape": tuple(value.shape()), "data": (value.data_ptr(), True)}
    return np.asarray(_Owner(value, interface))


class _Owner:
    def __init__(self, value: Any, interface: dict[str, Any]) -> None:
        self.value = value
        self.__array_interface__ = interface
