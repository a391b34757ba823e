import pytest

from conch.errors import InvalidArgument
from conch.forwarding import HeaderForwarding

FLAG = "http-header-forward-pattern"


def test_a_pattern_may_match_any_part_of_a_name() -> None:
    forwarding = HeaderForwarding("trace|^X-", FLAG)
    assert forwarding
    headers = [("X-One", "1"), ("x-two", "2"), ("my-trace-id", "3"), ("Host", "h"), ("X-One", "4")]
    assert forwarding.parameters(headers) == {"X-One": "4", "my-trace-id": "3"}


def test_case_counts_unless_the_pattern_says_otherwise() -> None:
    assert HeaderForwarding("my_header", FLAG).parameters([("MY_HEADER", "v")]) == {}
    assert HeaderForwarding("(?i)my_header", FLAG).parameters([("MY_Header_0", "v")]) == {"MY_Header_0": "v"}


def test_an_empty_pattern_forwards_nothing() -> None:
    assert not HeaderForwarding("", FLAG)
    assert HeaderForwarding("", FLAG).parameters([("a", "b")]) == {}


@pytest.mark.parametrize(
    "name",
    [
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "priority",
        "timeout",
        "headers",
        "binary_data_output",
        "triton_x",
    ],
)
def test_reserved_names_are_refused_where_they_would_be_forwarded(name: str) -> None:
    with pytest.raises(
        InvalidArgument, match=f"^Header '{name}' is reserved for Triton usage and cannot be forwarded.$"
    ):
        HeaderForwarding(".*", FLAG).parameters([(name, "1")])
    assert HeaderForwarding("other", FLAG).parameters([(name, "1")]) == {}


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "(?P<x", "a{4294967296}"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^--http-header-forward-pattern .* is not a regular expression"):
        HeaderForwarding(pattern, FLAG)
