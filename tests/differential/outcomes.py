"""What a server answered, as text that can be compared, and the ways in which two servers may differ on purpose."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

#: numbers that no two servers share: times, and counters of what the run has done so far
_COUNTERS = re.compile(r'"(ns|count|last_inference|inference_count|execution_count)":"?\d+"?')
#: where in the text a JSON parser gave up, and its words for why
_JSON_FAULT = re.compile(r"(failed to parse the request JSON buffer): .*?(?=\"|$)")


class Difference(NamedTuple):
    """``cases``, ``triton`` and ``conch`` are patterns for a case's name and both outcomes; ``why`` is for the reader,
    and for docs/compatibility.md."""

    cases: str
    triton: str
    conch: str
    why: str

    def covers(self, case: str, triton: str, conch: str) -> bool:
        return all(
            re.fullmatch(pattern, text, re.DOTALL)
            for pattern, text in ((self.cases, case), (self.triton, triton), (self.conch, conch))
        )


def shown(status: object, body: Any, any_order: bool = False) -> str:
    """``status`` and a JSON body, on one line; with its members sorted where their order says nothing."""
    if not isinstance(body, str):
        body = json.dumps(body, separators=(",", ":"), ensure_ascii=False, sort_keys=any_order)
    return normalised(f"{status} {body}")


def normalised(text: str) -> str:
    return _JSON_FAULT.sub(r"\1", _COUNTERS.sub(r'"\1":0', text))


class Comparison:
    """Sends cases to both servers and keeps what nobody has explained."""

    def __init__(self, differences: Sequence[Difference], deadly: "re.Pattern[str]") -> None:
        """``deadly``: names of cases that end Triton, which is not asked then and gets "dies" for an outcome."""
        self._deadly = deadly
        self._differences = differences
        self._unused = set(differences)
        self.compared = 0
        self.unexplained: list[str] = []

    def compare(self, case: str, triton: Callable[[], str], conch: Callable[[], str]) -> None:
        theirs = "dies" if self._deadly.fullmatch(case) else triton()
        ours = conch()
        self.compared += 1
        if theirs == ours:
            return
        for difference in self._differences:
            if difference.covers(case, theirs, ours):
                self._unused.discard(difference)
                return
        self.unexplained.append(f"{case}\n    Triton: {theirs[:600]}\n    Conch:  {ours[:600]}")

    def check(self) -> None:
        """Raises ``AssertionError`` for unexplained differences, and for explanations that nothing needs any more."""
        unused = [f"not needed any more: {difference}" for difference in sorted(self._unused)]
        problems = [*self.unexplained, *unused]
        assert not problems, f"{len(problems)} problems in {self.compared} cases\n" + "\n".join(problems)
