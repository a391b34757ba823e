"""conch.refusals: what is wrong with the elements of a BYTES input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch import tensors
from conch.refusals import refusal, wrong_elements

WHERE = "for inference input 'IN' for model 'm'"


def test_the_request_is_named() -> None:
    assert refusal("r1", "no") == "[request id: r1] no"
    assert refusal("", "no") == "[request id: <id_unknown>] no"


@pytest.mark.parametrize(
    ("data", "elements", "text"),
    [
        (b"\3\0\0\0abc" * 3, 2, f"unexpected number of string elements 3 {WHERE}, expecting 2"),
        (b"\3\0\0\0abc", 2, f"expected 2 string elements {WHERE}, got 1"),
        (
            b"\3\0\0\0abc\3\0\0",
            2,
            f"incomplete string length indicator {WHERE}, expecting 4 bytes but only 3 bytes available. Please make "
            "sure the string length indicator is in one buffer.",
        ),
        (
            b"\3\0\0\0ab",
            1,
            f"incomplete string data {WHERE}, expecting string of length 3 but only 2 bytes available",
        ),
        (
            b"\xff\xff\xff\xffabc",
            1,
            f"incomplete string data {WHERE}, expecting string of length 4294967295 but only 3 bytes available",
        ),
        (b"", 1, f"expected 1 string elements {WHERE}, got 0"),
        (b"", 0, ""),
    ],
)
def test_what_is_wrong(data: bytes, elements: int, text: str) -> None:
    assert wrong_elements(data, elements, "IN", "m") == text


@given(st.lists(st.binary(max_size=20), max_size=12), st.integers(1, 3))
def test_nothing_is_wrong_with_what_was_packed_until_a_byte_is_missing(parts: list[bytes], missing: int) -> None:
    data = tensors.pack(parts)
    assert wrong_elements(data, len(parts), "IN", "m") == ""
    if data:
        assert wrong_elements(data[:-missing], len(parts), "IN", "m")
