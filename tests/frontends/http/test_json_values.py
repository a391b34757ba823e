"""JSON as such: against Python's ``json``, limits, and what only Triton accepts."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.errors import ClientError, InvalidArgument, MalformedJson, TooLarge
from frontends.http.json_values import MAX_CONTAINERS, _depth, parse
from tests.frontends.http.codecs import (
    LIMIT,
    decode_json,
)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats()
        | st.text(st.characters(codec="utf-8")),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
        max_leaves=20,
    )
)
def test_parse_agrees_with_the_standard_library(value: Any) -> None:
    text = json.dumps(value).encode()
    assert repr(parse(text, LIMIT)) == repr(json.loads(text))
    assert repr(parse(bytearray(text), LIMIT)) == repr(json.loads(text))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text('[]{}",:\\ntrue019.eE+- ', max_size=60).map(str.encode))
def test_parse_of_anything(text: bytes) -> None:
    try:
        parse(text, LIMIT)
    except MalformedJson as error:
        assert error.message.startswith("failed to parse the request JSON buffer: ")


@settings(max_examples=200, deadline=None)
@given(st.text('[]{}"\\a', max_size=40))
def test_depth(text: str) -> None:
    depth = deepest = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            in_string = character != '"' or escaped
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    assert max(0, _depth(text.encode())) == deepest


def test_depth_limits() -> None:
    for depth in (99, 100):
        data = b"[" * depth + b"1" + b"]" * depth
        for datatype, value in ((b"INT8", b"1"), (b"BYTES", b'"a"')):
            shown = data.replace(b"1", value)
            body = b'{"inputs":[{"name":"A","shape":[1],"datatype":"%b","data":%b}]}' % (datatype, shown)
            if depth == 99:
                assert len(decode_json(body)[0].inputs[0].data) in (1, 5)
            else:
                with pytest.raises(InvalidArgument, match=r"JSON nesting depth exceeds maximum allowed limit \(100\)"):
                    decode_json(body)
    for text in (b"[" * 2000 + b"]" * 2000, b"[" * 2000 + b"NaN" + b"]" * 2000):
        with pytest.raises(InvalidArgument, match=r"JSON nesting depth exceeds"):
            parse(text, LIMIT)
    many = b'{"x":[' + b",".join([b'{"a":"[[[["}'] * 1000) + b"]}"
    assert len(parse(many, LIMIT)["x"]) == 1000


def test_arrays_are_counted() -> None:
    parse(b"[" + b"[]," * (MAX_CONTAINERS - 2) + b"[]]", LIMIT)
    with pytest.raises(TooLarge, match="more than the maximum of 2000000 arrays and objects"):
        parse(b"[" + b"[]," * MAX_CONTAINERS + b"[]]", LIMIT)


@pytest.mark.parametrize(
    "text",
    [b'"' * 200_001, b'"' + b'\\"' * 100_000, b'{"a' * 100_000, b"[" * 500_000, b'"\\' * 100_000, b"[" * 200 + b'"'],
)
def test_nothing_takes_long(text: bytes) -> None:
    begin = time.monotonic()
    with pytest.raises(ClientError):
        parse(text, LIMIT)
    assert time.monotonic() - begin < 0.2


@pytest.mark.parametrize("text", ["1e400", "-1e400", "[NaN,1e400]", "[NaN," + "9" * 400 + "]", '[NaN,"\\ud800"]'])
def test_numbers_too_big_and_half_characters(text: str) -> None:
    with pytest.raises(MalformedJson):
        parse(text.encode(), LIMIT)


def test_big_integers_become_floats() -> None:
    for prefix in ("[", "[NaN,"):
        found = parse((prefix + "18446744073709551615,18446744073709551616,-9223372036854775809]").encode(), LIMIT)
        assert repr(found[-3:]) == "[18446744073709551615, 1.8446744073709552e+19, -9.223372036854776e+18]"
