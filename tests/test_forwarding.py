import pytest

from conch.errors import InvalidArgument
from conch.forwarding import HeaderForwarding
from conch.settings import Settings

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


def test_headers_that_open_a_restricted_api_are_kept_from_models() -> None:
    settings = Settings(
        http_header_forward_pattern=".*",
        http_restricted_api=("model-repository:Admin-Key=secret", "logging:other=secret"),
        grpc_header_forward_pattern=".*",
        grpc_restricted_protocol=("inference:admin-key=secret",),
    )
    headers = [("ADMIN-key", "secret"), ("other", "secret"), ("X-Trace", "1")]
    assert settings.forwarding("http").parameters(headers) == {"X-Trace": "1"}
    metadata = [("triton-grpc-protocol-admin-key", "secret"), ("x-trace", "1")]
    assert settings.forwarding("grpc").parameters(metadata) == {"x-trace": "1"}
