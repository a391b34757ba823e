"""Label files: one label a line, named by an output's ``label_filename``, inside the model's folder."""

import os

from broker.repository.config_file import ModelConfigMessage
from conch.errors import Internal, Unsupported

#: a table of labels travels to every frontend with each change of the model table
MAX_LABELS_NBYTES = 16 << 20


def read_labels(config: ModelConfigMessage, model_dir: str) -> dict[str, tuple[str, ...]]:
    """Output name -> its labels. Raises ``Unsupported`` for a file outside the model's folder, also behind a link, and
    ``Internal`` for one that cannot be read."""
    labels = {}
    root = os.path.realpath(model_dir)
    for output in config.output:
        name = output.label_filename
        if not name:
            continue
        path = os.path.realpath(os.path.join(model_dir, name))
        if "\0" in name or os.path.commonpath((root, path)) != root:
            raise Unsupported(
                f"label file path '{name}' for output '{output.name}' in model '{config.name}' is outside model "
                "directory"
            )
        labels[output.name] = _read(path, name)
    return labels


def _read(path: str, name: str) -> tuple[str, ...]:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_LABELS_NBYTES + 1)
    except OSError as error:
        raise Internal(f"failed to open text file for read {name}: {error.strerror}") from error
    if len(content) > MAX_LABELS_NBYTES:
        raise Internal(f"the label file {name} is larger than {MAX_LABELS_NBYTES} bytes")
    lines = content.decode("utf-8", "replace").split("\n")
    if lines[-1] == "":  # what follows the last line's end is no line
        lines.pop()
    return tuple(line.removesuffix("\r") for line in lines)
