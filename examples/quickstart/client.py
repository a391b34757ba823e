"""Asks a server what kind of files these are.

    python client.py [--url localhost:8000] [FILE …]

For each file it prints the three likeliest types. Without files it takes a few of this repository's own.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
import tritonclient.http
import tritonclient.utils

MODEL_NAME = "file_type"
CLASSES_SHOWN = 3
FILES_PER_REQUEST = 16  # max_batch_size of the model

# What the model was trained on: the first and the last kilobyte of a file, of at most 4 KiB after whitespace is
# stripped; shorter ones are filled up with a value that no byte has.
BLOCK_BYTES = 4096
BEGINNING_TOKENS = 1024
END_TOKENS = 1024
PADDING_TOKEN = 256
LEAST_BYTES = 8

REPOSITORY = Path(__file__).parents[2]
SAMPLES = [
    "README.md",
    "pyproject.toml",
    "examples/quickstart/client.py",
    "examples/model_repository/simple/config.pbtxt",
    "examples/model_repository/text_to_image/1/palette.json",
    "scripts/quickstart",
]


def extract_features(beginning: bytes, end: bytes) -> numpy.ndarray:
    """Turn the first and the last ``BLOCK_BYTES`` of a file (the same bytes, if it is shorter) into the model's input,
    int32 of shape [2048]."""
    beginning = beginning.lstrip()[:BEGINNING_TOKENS]
    end = end.rstrip()[-END_TOKENS:]
    tokens = numpy.full(BEGINNING_TOKENS + END_TOKENS, PADDING_TOKEN, dtype=numpy.int32)
    tokens[: len(beginning)] = numpy.frombuffer(beginning, dtype=numpy.uint8)
    tokens[len(tokens) - len(end) :] = numpy.frombuffer(end, dtype=numpy.uint8)
    return tokens


def read_ends(path: Path) -> tuple[bytes, bytes]:
    with path.open("rb") as file:
        beginning = file.read(BLOCK_BYTES)
        file.seek(max(0, path.stat().st_size - BLOCK_BYTES))
        return beginning, file.read(BLOCK_BYTES)


def classify(
    client: tritonclient.http.InferenceServerClient, features: Sequence[numpy.ndarray]
) -> Iterator[list[tuple[float, str]]]:
    """Yield for each file its likeliest classes as (score, label), best first."""
    for start in range(0, len(features), FILES_PER_REQUEST):
        batch = numpy.stack(features[start : start + FILES_PER_REQUEST])
        tokens = tritonclient.http.InferInput("bytes", batch.shape, "INT32")
        tokens.set_data_from_numpy(batch)
        # The server sorts and looks up the labels: each answer is b"score:index:label".
        output = tritonclient.http.InferRequestedOutput("target_label", class_count=CLASSES_SHOWN)
        answer = client.infer(MODEL_NAME, [tokens], outputs=[output]).as_numpy("target_label")
        assert answer is not None
        for row in answer:
            fields = [element.decode().split(":", 2) for element in row]
            yield [(float(score), label) for score, _, label in fields]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Asks a server what kind of files these are.")
    parser.add_argument("--url", default="localhost:8000", help="host:port of the server (default: %(default)s)")
    parser.add_argument("files", nargs="*", type=Path, help="files to classify (default: some of this repository)")
    options = parser.parse_args(arguments)
    paths = options.files or [REPOSITORY / sample for sample in SAMPLES if (REPOSITORY / sample).exists()]

    known, features = [], []
    for path in paths:
        try:
            beginning, end = read_ends(path)
        except OSError as error:
            print(f"{path}: {error.strerror}")
            continue
        if len(beginning.lstrip()) < LEAST_BYTES:
            print(f"{path}: fewer than {LEAST_BYTES} bytes, too few to tell")
            continue
        known.append(path)
        features.append(extract_features(beginning, end))

    client = tritonclient.http.InferenceServerClient(options.url)
    for path, classes in zip(known, classify(client, features), strict=True):
        print(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)
        for score, label in classes:
            print(f"    {score:7.2%}  {label}")
    client.close()


if __name__ == "__main__":
    try:
        main()
    except (OSError, tritonclient.utils.InferenceServerException) as error:
        raise SystemExit(f"client: {error}") from error
