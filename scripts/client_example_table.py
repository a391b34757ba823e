"""The Python examples of Triton's official client repository: what each is about and what it needs."""

from dataclasses import dataclass
from enum import Enum


class Runs(Enum):
    """How an example runs: against which server, or why it does not."""

    SERVING = "against the server that serves everything"
    SEVEN_MODELS = "in explicit mode with the seven models that the HTTP example counts"
    EIGHT_MODELS = "in explicit mode with the eight models that the gRPC example counts"
    DEFAULT_PORTS = "against localhost:8000 and localhost:8001, which are written in it"
    SEQUENCES = "sequences"
    DECOUPLED = "a decoupled model"
    ENSEMBLE = "an ensemble, which the client repository does not ship"
    GPU = "a GPU"


#: may stand in ``Example.arguments``: a picture that is red
PICTURE = "PICTURE"
#: the label of `densenet_onnx` that the picture must get
LABEL_OF_PICTURE = "#ff0000"


@dataclass(frozen=True)
class Example:
    """``prints`` must be in its output: several of them end with status 0 after some failures too."""

    script: str
    protocol: str
    features: str
    runs: Runs = Runs.SERVING
    arguments: tuple[str, ...] = ()
    prints: str = "PASS"

    @property
    def command(self) -> str:
        return " ".join((self.script, *self.arguments))


def picture(script: str, protocol: str, features: str, *arguments: str) -> Example:
    words = ("-m", "densenet_onnx", "-c", "3", *arguments, PICTURE)
    return Example(script, protocol, features, arguments=words, prints=LABEL_OF_PICTURE)


def sequence(script: str, protocol: str, features: str) -> list[Example]:
    return [
        Example(script, protocol, features, Runs.SEQUENCES),
        Example(script, protocol, f"{features}, ids and ends as inputs", Runs.SEQUENCES, ("-d",)),
    ]


def http_infer(features: str, *arguments: str) -> Example:
    return Example("simple_http_infer_client.py", "HTTP", features, arguments=arguments, prints="'wrong_model_name'")


def reused(protocol: str) -> Example:
    arguments = ("-i", protocol.lower())
    features = "the same inputs in shared memory and in bodies"
    return Example("reuse_infer_objects_client.py", protocol, features, arguments=arguments, prints="END")


def memory_growth(protocol: str) -> Example:
    arguments = ("-i", protocol.lower())
    features = "100 clients, one after another"
    return Example("memory_growth_test.py", protocol, features, Runs.DEFAULT_PORTS, arguments, prints="")


def compression(request: str, response: str) -> tuple[str, ...]:
    return "--request-compression-algorithm", request, "--response-compression-algorithm", response


EXAMPLES = [
    Example("simple_http_health_metadata.py", "HTTP", "health, metadata, query parameters", prints="'name': 'simple'"),
    http_infer("JSON and binary tensors, statistics"),
    http_infer("request headers", "-H", "test:1"),
    http_infer("gzip there, deflate back", *compression("gzip", "deflate")),
    http_infer("deflate there, gzip back", *compression("deflate", "gzip")),
    Example("simple_http_async_infer_client.py", "HTTP", "requests at the same time, gevent", prints="15 - 1 = 14"),
    Example("simple_http_aio_infer_client.py", "HTTP", "asyncio client"),
    Example("simple_http_aio_infer_client.py", "HTTP", "asyncio, gzip", arguments=compression("gzip", "gzip")),
    Example("simple_http_string_infer_client.py", "HTTP", "strings, binary and JSON"),
    Example("simple_http_shm_client.py", "HTTP", "system shared memory"),
    Example("simple_http_shm_string_client.py", "HTTP", "system shared memory, strings"),
    Example("simple_http_model_control.py", "HTTP", "index, load, override, unload", Runs.SEVEN_MODELS),
    reused("HTTP"),
    memory_growth("HTTP"),
    picture("image_client.py", "HTTP", "classification"),
    picture("image_client.py", "HTTP", "classification, asynchronous", "-a"),
    Example("simple_grpc_health_metadata.py", "gRPC", "health, metadata, configuration", prints='name: "simple"'),
    Example("simple_grpc_infer_client.py", "gRPC", "raw tensors, statistics"),
    Example("simple_grpc_infer_client.py", "gRPC", "gzip", arguments=("-C", "gzip")),
    Example("simple_grpc_infer_client.py", "gRPC", "deflate", arguments=("-C", "deflate")),
    Example("simple_grpc_async_infer_client.py", "gRPC", "callbacks and deadlines"),
    Example("simple_grpc_aio_infer_client.py", "gRPC", "asyncio client"),
    Example("simple_grpc_custom_args_client.py", "gRPC", "channel arguments"),
    Example("simple_grpc_keepalive_client.py", "gRPC", "keepalive"),
    Example("simple_grpc_string_infer_client.py", "gRPC", "strings"),
    Example("simple_grpc_shm_client.py", "gRPC", "system shared memory"),
    Example("simple_grpc_shm_string_client.py", "gRPC", "system shared memory, strings"),
    Example("simple_grpc_model_control.py", "gRPC", "index, load, override, unload", Runs.EIGHT_MODELS),
    reused("gRPC"),
    memory_growth("gRPC"),
    Example("grpc_client.py", "gRPC", "protobuf stubs"),
    Example("grpc_explicit_int_content_client.py", "gRPC", "typed contents, INT32"),
    Example("grpc_explicit_int8_content_client.py", "gRPC", "typed contents, INT8"),
    Example("grpc_explicit_byte_content_client.py", "gRPC", "typed contents, strings"),
    picture("image_client.py", "gRPC", "classification", "-i", "grpc"),
    picture("image_client.py", "gRPC", "classification, asynchronous", "-i", "grpc", "-a"),
    picture("image_client.py", "gRPC", "classification, stream", "-i", "grpc", "--streaming"),
    picture("grpc_image_client.py", "gRPC", "classification, protobuf stubs"),
    picture("grpc_image_client.py", "gRPC", "classification, protobuf stubs, asynchronous", "-a"),
    picture("grpc_image_client.py", "gRPC", "classification, protobuf stubs, stream", "--streaming"),
    *sequence("simple_http_sequence_sync_infer_client.py", "HTTP", "sequences"),
    *sequence("simple_grpc_sequence_sync_infer_client.py", "gRPC", "sequences"),
    *sequence("simple_grpc_sequence_stream_infer_client.py", "gRPC", "sequences on a stream"),
    *sequence("simple_grpc_aio_sequence_stream_infer_client.py", "gRPC", "sequences on a stream, asyncio client"),
    Example("simple_grpc_custom_repeat.py", "gRPC", "several answers to a request", Runs.DECOUPLED),
    Example("ensemble_image_client.py", "both", "classification of JPEG files", Runs.ENSEMBLE),
    Example("simple_http_cudashm_client.py", "HTTP", "CUDA shared memory", Runs.GPU),
    Example("simple_grpc_cudashm_client.py", "gRPC", "CUDA shared memory", Runs.GPU),
]
