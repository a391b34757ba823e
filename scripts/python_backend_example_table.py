"""The examples of Triton's official python_backend repository: the models that each needs, and its client."""

from dataclasses import dataclass
from pathlib import Path

OURS = Path(__file__).parents[1] / "examples" / "python-backend-models"


@dataclass(frozen=True)
class Model:
    """``code`` and ``config`` are paths in upstream's folder of examples; no ``config``: it completes itself.
    ``stand_in``: a folder of ours instead."""

    name: str
    code: str = ""
    config: str = ""
    stand_in: Path | None = None


@dataclass(frozen=True)
class Example:
    """``client`` is a path in upstream's folder of examples. All of ``prints`` must be in its output. In ``arguments``,
    ``STAND_INS`` is the folder of what cannot be downloaded everywhere."""

    name: str
    shows: str
    models: tuple[Model, ...]
    client: str
    prints: tuple[str, ...]
    arguments: tuple[str, ...] = ()


def model(name: str, folder: str, prefix: str = "") -> Model:
    return Model(name, f"{folder}/{prefix}model.py", f"{folder}/{prefix}config.pbtxt")


ADD_SUB = model("add_sub", "add_sub")
PYTORCH = model("pytorch", "pytorch")
SQUARE = model("square_int32", "decoupled", "square_")

EXAMPLES = (
    Example("add_sub", "a first model", (ADD_SUB,), "add_sub/client.py", ("PASS: add_sub",)),
    Example(
        "auto_complete",
        "models without a configuration",
        (
            Model("nobatch_auto_complete", "auto_complete/nobatch_model.py"),
            Model("batch_auto_complete", "auto_complete/batch_model.py"),
        ),
        "auto_complete/client.py",
        ("PASS: auto_complete",),
    ),
    Example(
        "bls sync",
        "a model that asks others",
        (ADD_SUB, PYTORCH, model("bls_sync", "bls", "sync_")),
        "bls/sync_client.py",
        ("Model 'undefined_model' is not ready", "PASS: BLS Sync"),
    ),
    Example(
        "bls async",
        "a model that asks several at a time",
        (ADD_SUB, PYTORCH, model("bls_async", "bls", "async_")),
        "bls/async_client.py",
        ("PASS: BLS Async",),
    ),
    Example(
        "bls_decoupled sync",
        "a model that asks a decoupled one",
        (SQUARE, model("bls_decoupled_sync", "bls_decoupled", "sync_")),
        "bls_decoupled/sync_client.py",
        ("PASS: BLS Decoupled Sync",),
    ),
    Example(
        "bls_decoupled async",
        "the same, twice at a time",
        (SQUARE, model("bls_decoupled_async", "bls_decoupled", "async_")),
        "bls_decoupled/async_client.py",
        ("PASS: BLS Decoupled Async",),
    ),
    Example(
        "custom_metrics",
        "metrics of a model's own",
        (model("custom_metrics", "custom_metrics"),),
        "custom_metrics/client.py",
        ("PASS: custom_metrics",),
    ),
    Example(
        "decoupled repeat",
        "several responses to a request",
        (model("repeat_int32", "decoupled", "repeat_"),),
        "decoupled/repeat_client.py",
        ("PASS: repeat_int32",),
    ),
    Example(
        "decoupled square", "none to many responses", (SQUARE,), "decoupled/square_client.py", ("PASS: square_int32",)
    ),
    Example(
        "preprocessing",
        "pictures in, classes out; a model of ours asks the steps of the ensemble, ONNX takes the place of TensorRT",
        (
            Model("preprocess", "preprocessing/model.py", "preprocessing/model_repository/preprocess/config.pbtxt"),
            Model("resnet50_trt", stand_in=OURS / "resnet50_trt"),
            Model("ensemble_python_resnet50", stand_in=OURS / "ensemble_python_resnet50"),
        ),
        "preprocessing/client.py",
        ("Result is class:",),
        ("--image=STAND_INS/picture.png",),
    ),
    Example(
        "instance_kind",
        "KIND_CPU, DLPack with PyTorch; weights and picture are made, not downloaded",
        (model("resnet50", "instance_kind"),),
        "instance_kind/client.py",
        ("PASS: ResNet50 instance kind",),
    ),
    Example("jax", "a model of a framework", (model("jax", "jax"),), "jax/client.py", ("PASS: jax",)),
    Example("pytorch", "a model of another framework", (PYTORCH,), "pytorch/client.py", ("PASS: pytorch",)),
)
