"""A Python model's own word on whether it is ready: ``is_ready(self) -> bool``, which may be a coroutine function."""

from typing import Any


class Readiness:
    """To be asked on one thread only."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._loop: Any = None

    def ask(self) -> bool:
        """Raises ``TypeError`` for an answer that is no bool, and whatever the model raises."""
        answer = self._model.is_ready()
        if hasattr(answer, "__await__"):
            answer = self._await(answer)
        if type(answer) is not bool:
            raise TypeError(f"is_ready() must return a bool, not {type(answer).__name__}")
        return answer

    def _await(self, awaitable: Any) -> Any:
        if self._loop is None:
            import asyncio  # only for models that need it

            self._loop = asyncio.new_event_loop()

        async def wait() -> Any:
            return await awaitable

        return self._loop.run_until_complete(wait())
