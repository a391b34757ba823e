"""Clients that keep sending, and remember every answer."""

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy


@dataclass(frozen=True)
class Exchange:
    """One request to ``simple``; times on the monotonic clock in seconds. ``problem`` is empty if all is right."""

    sent_s: float
    answered_s: float
    problem: str


@dataclass
class Load:
    """``clients`` threads, each with one connection and one request at a time, numbers that are never used twice.

    As a context manager it sends until its end. ``check`` then says whether every request was answered, and with the
    sum and difference of its own numbers.
    """

    port: int
    clients: int = 4
    timeout_s: float = 15.0
    exchanges: list[Exchange] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._run, args=[number]) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def answered_since(self, moment_s: float) -> list[Exchange]:
        """Right answers to requests sent after ``moment_s``, first answer first."""
        found = [each for each in self.exchanges if each.sent_s > moment_s and not each.problem]
        return sorted(found, key=lambda each: each.answered_s)

    def wait_for_answers(self, moment_s: float, count: int, timeout_s: float) -> None:
        """Until ``count`` requests sent after ``moment_s`` have been answered."""
        deadline = time.monotonic() + timeout_s
        while len(self.answered_since(moment_s)) < count:
            assert time.monotonic() < deadline, f"no {count} answers within {timeout_s} s; {self.problems()[:3]}"
            time.sleep(0.005)

    def problems(self) -> list[str]:
        return [each.problem for each in self.exchanges if each.problem]

    def longest_wait_s(self) -> float:
        return max(each.answered_s - each.sent_s for each in self.exchanges)

    def check(self) -> None:
        assert self.exchanges
        problems = self.problems()
        assert not problems, f"{len(problems)} of {len(self.exchanges)} failed: {problems[:5]}"

    def _run(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)
        count = 0
        while not self._over.is_set():
            count += 1
            # 16 numbers of which no other request of any client has the first, nor its sum with the others
            first = number * 100_000_000 + count
            problem, sent_s = "", time.monotonic()
            try:
                problem = self.exchange(connection, first)
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
                connection.close()
            self.exchanges.append(Exchange(sent_s, time.monotonic(), problem))
            if problem:
                time.sleep(0.01)  # a server that is gone refuses connections at once
        connection.close()

    @staticmethod
    def exchange(connection: http.client.HTTPConnection, first: int) -> str:
        """One request to ``simple`` whose first number is ``first``. What is wrong with the answer, if anything is."""
        left = numpy.full(16, first, dtype=numpy.int32)
        right = numpy.arange(16, dtype=numpy.int32)
        tensor = {"shape": [1, 16], "datatype": "INT32"}
        body = {
            "id": str(first),
            "inputs": [
                {"name": "INPUT0", "data": left.tolist(), **tensor},
                {"name": "INPUT1", "data": right.tolist(), **tensor},
            ],
        }
        connection.request("POST", "/v2/models/simple/infer", json.dumps(body))
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            return f"{response.status}: {text.decode(errors='replace')}"
        answer = json.loads(text)
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        if answer["id"] != str(first):
            return f"asked {first}, answered id {answer['id']}"
        if outputs != {"OUTPUT0": (left + right).tolist(), "OUTPUT1": (left - right).tolist()}:
            return f"asked {first}, answered {outputs}"
        return ""
