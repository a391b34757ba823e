"""``--backend-config``: settings for one backend (``onnxruntime,key=value``) or for all (``key=value``)."""

from collections.abc import Iterable

from conch.errors import InvalidArgument


class BackendSettings:
    """Raises ``InvalidArgument`` for an entry that is neither ``<backend>,<key>=<value>`` nor ``<key>=<value>``."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._settings: dict[str, dict[str, str]] = {}
        for entry in entries:
            backend, comma, setting = entry.partition(",")
            if not comma or "=" in backend:  # a comma may also be part of a global setting's value
                backend, setting = "", entry
            key, equals, value = setting.partition("=")
            if not equals or not key.strip():
                raise InvalidArgument(
                    "--backend-config option format is '<backend name>,<setting>=<value>' or '<setting>=<value>'. "
                    f"Got {entry}"
                )
            self._settings.setdefault(backend.strip(), {})[key.strip()] = value.strip()

    def for_backend(self, backend: str) -> dict[str, str]:
        """Settings for every backend, overruled by those of this one."""
        return {**self._settings.get("", {}), **self._settings.get(backend, {})}
