"""What a client may do with shared memory, in any order and with any numbers."""

from typing import NamedTuple

from hypothesis import strategies as st

from tests.scenarios.fuzz.values import mostly

#: offsets of regions are multiples of it
PAGE_NBYTES = 4096
#: of the memory that a client registers
NBYTES = 4 * PAGE_NBYTES
#: stands for the client's own memory, and for a segment of the server
OWN, OURS = "own", "ours"


class Register(NamedTuple):
    name: str
    key: str
    offset: int
    nbytes: int


class Unregister(NamedTuple):
    """ "" for all."""

    name: str


class Status(NamedTuple):
    name: str


class Resize(NamedTuple):
    """The memory, by its client, whatever is registered."""

    nbytes: int


class Window(NamedTuple):
    """Where a tensor lies. None: the parameter is left out."""

    name: str
    offset: int | None
    nbytes: int | None


class Infer(NamedTuple):
    """``model`` has INPUT0 and OUTPUT0. Without a source, the input's bytes are sent."""

    model: str
    datatype: str
    shape: tuple[int, ...]
    source: Window | None
    target: Window | None


Step = Register | Unregister | Status | Resize | Infer

_NAMES = mostly(st.sampled_from(["a", "b"]), st.sampled_from(["", "é", "/", "x" * 300, "nope"]))
_KEYS = mostly(
    st.just(OWN), st.sampled_from([OURS, "", "/", "//", "a/b", "/../etc/passwd", "/nope", ".", "/\0", "x" * 300])
)
_OFFSETS = st.one_of(
    st.sampled_from([0, 0, 0, 0, 1, 64, 100, NBYTES - 64, NBYTES - 1, NBYTES, NBYTES + 1, 2**31, 2**32, 2**62]),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - NBYTES, 2**64 - 1, 2**64, -1, -64]),
    st.integers(0, NBYTES),
)
_LENGTHS = st.one_of(
    st.sampled_from([NBYTES, NBYTES, 1024, 64, 64, 0, 1, 63, 65, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1]),
    st.integers(0, NBYTES),
)
_WINDOWS = st.builds(
    Window,
    mostly(st.sampled_from(["a", "b"]), st.sampled_from(["nope", ""])),
    mostly(st.sampled_from([None, 0, 64, 100]), _OFFSETS),
    mostly(st.just(64), st.none() | _LENGTHS),
)
_TENSORS = st.sampled_from(
    [
        *[("echo_int32", "INT32", (16,))] * 4,
        *(("echo_bytes", "BYTES", (1,)), ("echo_bytes", "BYTES", (16,)), ("echo_bytes", "BYTES", (0,))),
        *(("echo_fp32", "FP32", (16,)), ("matrix", "FP32", (8, 2)), ("echo_int32", "INT32", (2**62,))),
        *(("echo_int32", "INT32", (0,)), ("echo_int32", "FP32", (16,)), ("echo_int32", "INT32", (1024,))),
    ]
)
_INFERENCES = st.builds(
    lambda tensor, source, target: Infer(tensor[0], tensor[1], tensor[2], source, target),
    _TENSORS,
    mostly(_WINDOWS, st.none()),
    mostly(_WINDOWS, st.none()),
)
_PAGES = st.integers(0, 2).map(lambda pages: pages * PAGE_NBYTES)
_REGISTRATIONS = st.builds(Register, _NAMES, _KEYS, mostly(_PAGES, _OFFSETS), _LENGTHS)
_PLAIN = st.builds(
    Register, st.sampled_from(["a", "b"]), st.just(OWN), _PAGES, st.sampled_from([100, PAGE_NBYTES, 5000])
)

_ANY = st.lists(
    mostly(
        st.sampled_from([_INFERENCES, _INFERENCES, _REGISTRATIONS, _PLAIN]).flatmap(lambda steps: steps),
        st.one_of(
            st.builds(Unregister, _NAMES),
            st.builds(Status, _NAMES),
            st.builds(Resize, st.sampled_from([0, 1, 64, 100, NBYTES // 2, NBYTES, 2 * NBYTES])),
        ),
    ),
    min_size=1,
    max_size=6,
)
STEPS: st.SearchStrategy[list[Step]] = st.builds(
    lambda first, rest: [*first, *rest], st.lists(_PLAIN, max_size=2), _ANY
)
