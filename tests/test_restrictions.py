import pytest

from conch.categories import Category
from conch.errors import Forbidden, InvalidArgument
from conch.restrictions import Restrictions

HTTP = "http-restricted-api"
GRPC = "grpc-restricted-protocol"


def _no_headers(name: str) -> str | None:
    return None


def test_only_the_named_categories_ask_for_the_header() -> None:
    restrictions = Restrictions.parse(("health,model-config:Some-Key=a=b:c",), HTTP)
    assert restrictions
    given: dict[str, str] = {}
    restrictions.check(Category.INFERENCE, given.get)
    for category in (Category.HEALTH, Category.MODEL_CONFIG):
        with pytest.raises(Forbidden, match=r"^This API is restricted, expecting header 'Some-Key'$"):
            restrictions.check(category, given.get)
    given["some-key"] = "a=b"
    with pytest.raises(Forbidden):
        restrictions.check(Category.HEALTH, given.get)
    given["some-key"] = "a=b:c"
    restrictions.check(Category.HEALTH, given.get)


def test_no_values_restrict_nothing() -> None:
    restrictions = Restrictions.parse((), HTTP)
    assert not restrictions
    for category in Category:
        restrictions.check(category, _no_headers)


def test_metadata_keys_have_a_prefix() -> None:
    restrictions = Restrictions.parse(("inference:k=v", "health:k2=v2"), GRPC, "triton-grpc-protocol-")
    with pytest.raises(Forbidden, match=r"^This protocol is restricted, expecting header 'triton-grpc-protocol-k'$"):
        restrictions.check(Category.INFERENCE, {"k": "v"}.get)
    restrictions.check(Category.INFERENCE, {"triton-grpc-protocol-k": "v"}.get)


def test_every_category_can_be_restricted() -> None:
    restrictions = Restrictions.parse((",".join(category.value for category in Category) + ":k=v",), HTTP)
    for category in Category:
        with pytest.raises(Forbidden):
            restrictions.check(category, _no_headers)


@pytest.mark.parametrize("text", ["", "health", "health:", "health:k", "health:k=", "health:=v", ":k=v", "k=v"])
def test_incomplete_values_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="option format is '<config name>:<setting>=<value>'"):
        Restrictions.parse((text,), HTTP)


def test_the_secret_is_not_repeated() -> None:
    with pytest.raises(InvalidArgument) as raised:
        Restrictions.parse(("k=secret",), HTTP)
    assert "secret" not in raised.value.message


def test_unknown_categories_and_repeated_ones_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^unknown restricted api 'infer'"):
        Restrictions.parse(("health,infer:k=v",), HTTP)
    with pytest.raises(
        InvalidArgument, match=r"^restricted protocol 'health' can not be specified in multiple config groups$"
    ):
        Restrictions.parse(("health:k=v", "trace,health:k=v"), GRPC, "triton-grpc-protocol-")
    with pytest.raises(InvalidArgument, match="can not be specified in multiple config groups"):
        Restrictions.parse(("health,health:k=v",), HTTP)
