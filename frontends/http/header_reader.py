"""A reader for servers that forward headers: it keeps them as the client spelled them."""

from frontends.http.reader import HEAD, RequestReader


class HeaderReader(RequestReader):
    """The usual reader does not, because that takes time for every header."""

    __slots__ = ("_headers",)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if self.phase == HEAD:
            self._headers.append((name, value))

    def on_message_complete(self) -> None:
        if self._request is not None:
            self._request.headers = self._headers
        super().on_message_complete()
