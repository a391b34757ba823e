"""Values of every wrong kind, and documents and bytes that are damaged in some places."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st


def mostly(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """``odd`` once in five times. ``usual | odd`` would weigh the parts that they are made of."""
    return st.integers(0, 4).flatmap(lambda number: usual if number else odd)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


#: where signed, unsigned and floating numbers of the usual widths end
EDGES = sorted({sign * (2**bits + more) for sign in (1, -1) for bits in (7, 8, 15, 16, 31, 32, 53, 62, 63, 64)
                for more in (-1, 0, 1)})  # fmt: skip
INTEGERS = st.one_of(st.sampled_from(EDGES), st.integers(-70, 70), st.integers(), st.just(10**400))
UNSIGNED_64 = st.one_of(st.sampled_from([edge for edge in EDGES if 0 <= edge < 2**64]), st.integers(0, 200))
SIGNED_64 = st.one_of(st.sampled_from([edge for edge in EDGES if -(2**63) <= edge < 2**63]), st.integers(-2, 70))
FLOATS = st.one_of(st.floats(), st.sampled_from([float("nan"), float("inf"), -0.0, 1.0, 16.0, 1e308, 5e-324]))
DATATYPES = (
    *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "BF16"),
    *("FP32", "FP64", "BYTES"),
)
NAMES = st.sampled_from(["INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1", "simple", "other", "region", "input0", "id"])
TEXTS = st.one_of(
    NAMES,
    st.sampled_from(DATATYPES),
    st.sampled_from(["", "\0", "é", "\ud800", "/", "../..", "%s%n", "x" * 5000, "-1", "1e3", "true", "NaN", "1" * 30]),
    st.text(max_size=20),
)
SHAPES = st.lists(INTEGERS, max_size=5)
JSON_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, False, [], {}, [[]], {"": {}}, [None], [1, "x"], nested(50), nested(150)]),
    INTEGERS,
    FLOATS,
    TEXTS,
    SHAPES,
    st.recursive(
        st.one_of(st.none(), st.booleans(), INTEGERS, FLOATS, TEXTS),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=8,
    ),
)

Path = tuple[Any, ...]


def _places(document: Any, path: Path = ()) -> Iterator[Path]:
    """Of every value in ``document`` that is in an object or a list."""
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document[:20])
    for step, value in items:
        yield (*path, step)
        yield from _places(value, (*path, step))


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """``document`` with one to three of its values replaced, left out, doubled, wrapped, or under another name."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places or draw(st.integers(0, 40)) == 0:
            document = copy.deepcopy(draw(JSON_VALUES))
            continue
        path = draw(st.sampled_from(places))
        holder = document
        for step in path[:-1]:
            holder = holder[step]
        step = path[-1]
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "wrap", "rename", "swap"])):
            case "replace":
                holder[step] = copy.deepcopy(draw(JSON_VALUES))
            case "remove":
                del holder[step]
            case "double" if isinstance(holder, list):
                holder.insert(step, copy.deepcopy(holder[step]))
            case "wrap":
                holder[step] = [holder[step]]
            case "swap":
                other = draw(st.sampled_from(places))
                value: Any = document
                for each in other:
                    value = value[each] if _has(value, each) else None
                holder[step] = copy.deepcopy(value)
            case _ if isinstance(holder, dict):
                holder[draw(TEXTS)] = holder.pop(step)
    return document


def _has(value: Any, step: Any) -> bool:
    return step in value if isinstance(value, dict) else isinstance(value, list) and len(value) > step


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` cut off, or with bytes changed, put in, left out or repeated in one to three places."""
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, len(data)))
        end = min(len(data), position + draw(st.integers(1, 16)))
        match draw(st.sampled_from(["cut", "change", "insert", "remove", "repeat"])):
            case "cut":
                data = data[:position]
            case "change":
                data = data[:position] + draw(st.binary(min_size=1, max_size=4)) + data[end:]
            case "insert":
                data = data[:position] + draw(GARBAGE) + data[position:]
            case "remove":
                data = data[:position] + data[end:]
            case _:
                data = data[:end] + data[position:end] * draw(st.integers(1, 20)) + data[end:]
    return data


GARBAGE = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"\0" * 8, b"\xff" * 10, b"[" * 3000, b"{" * 3000, b"\r\n\r\n", b"\n", b"%00", b"\xed\xa0\x80"]),
)
