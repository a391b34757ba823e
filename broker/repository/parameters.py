"""Parameters of models that are probably misspelt. A model may have any it likes, so nothing refuses them; but a limit
under another name does not protect anybody."""

from collections.abc import Iterable
from difflib import get_close_matches

#: of every model
_KNOWN = ("EXECUTION_TIMEOUT_S", "IDEMPOTENT", "LOAD_TIMEOUT_S", "MEMORY_LIMIT_MIB")
#: of the models of a backend, besides
_KNOWN_OF = {
    # the last one is Triton's and has no effect here
    "python": ("EXECUTION_ENV_PATH", "READ_ONLY_INPUT_TENSORS", "FORCE_CPU_ONLY_INPUT_TENSORS"),
    "onnxruntime": (
        *("cudnn_conv_algo_search", "enable_mem_arena", "enable_mem_pattern", "execution_mode", "gpu_mem_limit"),
        *("inter_op_thread_count", "intra_op_thread_count"),
    ),
}
#: finds EXECUTION_TIMEOUT_MS and MEM_LIMIT_MIB, and not execution_mode
_CUTOFF = 0.8


def misspelt(names: Iterable[str], backend: str) -> dict[str, str]:
    """``names`` of a model's parameters that nothing here knows -> what is probably meant, for a warning."""
    given = set(names)
    known = {name.upper(): name for name in (*_KNOWN, *_KNOWN_OF.get(backend, ()))}
    found = {}
    for name in sorted(given - set(known.values())):
        for near in get_close_matches(name.upper(), known, 1, _CUTOFF):
            if known[near] not in given:
                found[name] = known[near]
    return found
