"""onnxruntime with nothing around it: the most that one thread can do with a model.

    python -m benchmarks.bare_loop MODEL.onnx BATCH_SIZE SECONDS

prints how many batches it ran and in how many seconds, as JSON.
"""

import json
import sys
import time

import onnxruntime

from benchmarks.models import classifier_input


def main() -> None:
    path, batch_size, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokens = {session.get_inputs()[0].name: classifier_input(batch_size)}
    warm = time.perf_counter() + 0.5
    while time.perf_counter() < warm:
        session.run(None, tokens)
    batches, begin = 0, time.perf_counter()
    while (now := time.perf_counter()) < begin + seconds:
        session.run(None, tokens)
        batches += 1
    print(json.dumps({"batches": batches, "seconds": now - begin}))


if __name__ == "__main__":
    main()
