"""Where Conch differs from Triton 2.51 on purpose, one list per kind of case; docs/compatibility.md tells users."""

import re

from tests.differential.outcomes import Difference

#: cases that end the whole of Triton 2.51, which is not asked; Conch is, and its answer must be the client's fault
TRITON_DIES = re.compile(r"inputs\.0\.shape\.0 = (2147483648|9223372036854775808|18446744073709551616)")

_NEWER = "as Triton 2.73"
_ANY_INPUT = "which of several wrong inputs Triton names depends on the order of a hash table"
_RANGE = "a value that its datatype cannot hold is refused; Triton cuts off its high bits"

_INPUTS_DIFFER = Difference(
    r".*(shape|batch sizes differ|values in contents|INPUT0 = \[\]).*",
    r".* '?INPUT[01]'? .*",
    r".* '?INPUT[01]'? .*",
    _ANY_INPUT,
)
_TOO_DEEP = "JSON is refused beyond 100 levels of nesting, wherever they are"
_HEADER_LENGTH = "a header length that is no number is said to be none, as by Triton 2.73"
_STRINGS = Difference(
    r"(malformed: )?strings .*",
    r".*incomplete string data for inference input 'INPUT0', expecting .*",
    r".*incomplete string data for inference input 'INPUT0' for model 'echo_bytes', expecting .*",
    _NEWER,
)
_OUTPUT_TWICE = Difference(
    r"malformed: output twice|outputs \['OUTPUT0', 'OUTPUT0'\]",
    r"(200|OK) .*",
    r".*already exists in request.*",
    _NEWER,
)
_KEYS = (
    Difference(
        r".*[kK]ey '?(|//?|\\x00)'?|register: key = ''",
        r"(500|INTERNAL) .*Unable to open shared memory region: .*",
        r"(400|INVALID_ARGUMENT) .*invalid shm key.*|500 .*Unable to open.*",
        _NEWER,
    ),
    Difference(
        r".*key '/triton_python_backend_shm_region_1'",
        r".*Unable to open shared memory region: .*",
        r".*the key contains the reserved prefix.*",
        _NEWER,
    ),
)
_CUDA = Difference(
    r"register cuda|CudaSharedMemoryRegister .*",
    r"(400|INVALID_ARGUMENT) .*failed to register shared memory region: invalid args.*",
    r"(400|INVALID_ARGUMENT) .*failed to register (CUDA )?shared memory region 'differential': .*",
    "the region is named, and the reason given, for instance that there is no GPU",
)
_VERSION = Difference(
    r"version 1x",
    r"OK .*",
    r"INVALID_ARGUMENT .*version should be an integral value > 0",
    "Triton reads the digits and leaves the rest",
)

_METADATA = Difference(
    r"GET /v2|ServerMetadata",
    r"(200|OK) .*\"name\":\"triton\".*",
    r"(200|OK) .*\"name\":\"triton\".*",
    "the version is the newest one that Conch follows, and only the extensions are listed that are on",
)

HTTP_INFERENCE: tuple[Difference, ...] = (
    Difference(r"inputs\.0\.shape\.0 = .*", "dies", r"[45]00 .*", "a shape too large for memory is refused"),
    _INPUTS_DIFFER,
    _STRINGS,
    _OUTPUT_TWICE,
    Difference(
        r".*(data|values).*",
        r"500 .*Shape does not match true shape of 'data' field.*",
        r"500 .*shape does not match true shape.*",
        _NEWER,
    ),
    Difference(
        r"BOOL data \[1,2\]",
        r"500 .*non-boolean as boolean.*",
        r"500 .*Shape does not match.*",
        "the number of values is looked at before the values",
    ),
    Difference(
        r"inputs\.0\.data\.3 = 2147483648|malformed: (INT8|INT32|UINT32) \d+",
        r"200 .*",
        r"400 .*out of the range of datatype.*",
        _RANGE,
    ),
    Difference(
        r"outputs\.0\.parameters\.classification = 9223372036854775808",
        r"200 .*INT32.*",
        r"200 .*BYTES.*",
        "a number of classes beyond 32 bits is a large number; Triton reads it as none",
    ),
    Difference(r"malformed: deep.*", r"(200|500) .*", r"400 .*JSON nesting depth exceeds.*", _TOO_DEEP),
    Difference(
        r"malformed: input too many",
        r"400 .*but missing required input\(s\) \]\..*",
        r"400 .*but missing required input\(s\) \[\]\..*",
        "Triton's list of inputs has lost a bracket, and comes in the order of a hash table",
    ),
    Difference(
        r"malformed: header length .*|Inference-Header-Content-Length .*",
        r"[45]00 .*",
        r"400 .*Unable to parse Inference-Header-Content-Length, .*",
        _HEADER_LENGTH,
    ),
    Difference(
        r"malformed: content encoding untrue|Content-Encoding (gzip|deflate)",
        r"(400|200) .*",
        r"400 .*the request body is not (valid|complete) (gzip|deflate) data.*",
        "a body that is not what its encoding says is refused as such",
    ),
    Difference(
        r"FP64 JSON",
        r"200 .*-1.5000000000000001e-30.*",
        r"200 .*-1.5e-30.*",
        "numbers are read to the last bit",
    ),
    Difference(
        r"raw, 6 bytes", r"400 .*input 'raw_input' for.*", r"400 .*input 'INPUT0' for.*", "the input has a name"
    ),
)

HTTP_ENDPOINTS: tuple[Difference, ...] = (
    _METADATA,
    Difference(
        r"GET /v2/models/(nope|simple/versions/7)/ready",
        r"400 .*Model version not ready.*",
        r"404 .*Request for unknown model.*",
        _NEWER,
    ),
    Difference(
        r"index b'\{\"ready\":(1|null)\}'",
        r"500 .*non-boolean as boolean.*",
        r"400 .*expected a boolean.*",
        _NEWER,
    ),
    *_KEYS,
    _CUDA,
    Difference(
        r"generate(_stream)?: INPUT0 = \[\]",
        r"400 .*batch size does not match.*",
        r"400 .*input byte size mismatch.*",
        _ANY_INPUT,
    ),
)

GRPC_INFERENCE: tuple[Difference, ...] = (
    _INPUTS_DIFFER,
    _STRINGS,
    _OUTPUT_TWICE,
    _VERSION,
    Difference(
        r"U?INT(8|16) in u?int_contents \d+",
        r"OK .*",
        r"INVALID_ARGUMENT a value of input 'INPUT0' is out of the range of datatype .*",
        _RANGE,
    ),
)

GRPC_RPCS: tuple[Difference, ...] = (
    _METADATA,
    *_KEYS,
    _CUDA,
    Difference(r"unknown (method|service)", r"UNIMPLEMENTED ", r"UNIMPLEMENTED .+", "the status says what is wrong"),
)
