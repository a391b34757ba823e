"""Parts of the API that only callers with a certain header may use (inventory Y-03 … Y-05)."""

import hmac
from collections.abc import Callable, Mapping
from typing import NamedTuple

from conch.categories import Category
from conch.errors import Forbidden, InvalidArgument

#: how a category is called by the flag, and how its error calls the API
_WORDS = {"api": "API", "protocol": "protocol"}


class _Rule(NamedTuple):
    header: str
    value: bytes


class Restrictions:
    """The one place that every HTTP route and every RPC passes before anything else. False when nothing is restricted:
    then there is no need to ask ``check``."""

    def __init__(self, rules: Mapping[Category, _Rule], word: str) -> None:
        self._rules = dict(rules)
        self._word = word

    @classmethod
    def parse(cls, values: tuple[str, ...], flag: str, key_prefix: str = "") -> "Restrictions":
        """``values`` of the flag ``http-restricted-api`` or ``grpc-restricted-protocol``, each of the form
        ``<category>,<category>:<header>=<value>``. ``key_prefix`` is put before every header's name.

        Raises ``InvalidArgument`` with Triton's texts, among others for a category that is unknown or named twice.
        """
        feature = flag.rpartition("-")[2]
        rules: dict[Category, _Rule] = {}
        for text in values:
            names, _, rest = text.partition(":")
            header, _, value = rest.partition("=")
            if not names or not header or not value:
                raise InvalidArgument(
                    f"--{flag} option format is '<config name>:<setting>=<value>'. Got {_without_value(text)}"
                )
            for name in names.split(","):
                try:
                    category = Category(name)
                except ValueError:
                    raise InvalidArgument(
                        f"unknown restricted {feature} '{name}'; --{flag} knows {', '.join(c.value for c in Category)}"
                    ) from None
                if category in rules:
                    raise InvalidArgument(
                        f"restricted {feature} '{name}' can not be specified in multiple config groups"
                    )
                rules[category] = _Rule(key_prefix + header, _encoded(value))
        return cls(rules, _WORDS[feature])

    def __bool__(self) -> bool:
        return bool(self._rules)

    @property
    def headers(self) -> frozenset[str]:
        """Names, in lower case, of the headers whose values are secrets."""
        return frozenset(rule.header.lower() for rule in self._rules.values())

    def check(self, category: Category, header: Callable[[str], str | None]) -> None:
        """``header`` returns the caller's value for a name in lower case. Raises ``Forbidden``."""
        rule = self._rules.get(category)
        if rule is None:
            return
        value = header(rule.header.lower())
        if value is None or not hmac.compare_digest(_encoded(value), rule.value):
            raise Forbidden(f"This {self._word} is restricted, expecting header '{rule.header}'")


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _without_value(text: str) -> str:
    """The value is a secret, and errors at start are logged."""
    return text.partition("=")[0]
