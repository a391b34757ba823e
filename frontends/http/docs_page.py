"""The page at ``/v2/docs`` on which the models can be tried, and the OpenAPI document that it is made from."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Final

import orjson

from conch.requester.models import ModelTableView
from frontends.http.exchange import JSON_TYPE, Reply, Request
from frontends.http.openapi import document
from frontends.http.routes import Match

_NO_SNIFFING: Final = b"X-Content-Type-Options: nosniff\r\n"
_INLINE: Final = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


class DocsEndpoints:
    def __init__(self, models: ModelTableView, server_id: str) -> None:
        self._models = models
        self._server_id = server_id
        self._document: Reply | None = None
        #: ``updates`` of the models that the document is of
        self._updates = -1

    def docs(self, request: Request, match: Match) -> Reply:
        return _page()

    def openapi(self, request: Request, match: Match) -> Reply:
        if self._document is None or self._updates != self._models.updates:
            self._updates = self._models.updates
            body = orjson.dumps(document(self._models, self._server_id))
            self._document = Reply(200, JSON_TYPE + _NO_SNIFFING + b"Cache-Control: no-cache\r\n", body)
        return self._document


@cache
def _page() -> Reply:
    page = files("frontends.http").joinpath("docs.html").read_bytes()
    return Reply(200, b"Content-Type: text/html; charset=utf-8\r\n" + _NO_SNIFFING + _policy(page), page)


def _policy(page: bytes) -> bytes:
    """Nothing runs or loads on the page but what is written in it, and it talks to this server only."""
    hashes = {
        kind: b"'sha256-%b'" % base64.b64encode(hashlib.sha256(text).digest()) for kind, text in _INLINE.findall(page)
    }
    policy = (
        b"default-src 'none'; script-src %b; style-src %b; connect-src 'self'; img-src data:; base-uri 'none'; "
        b"form-action 'none'; frame-ancestors 'none'" % (hashes[b"script"], hashes[b"style"])
    )
    return b"Content-Security-Policy: %b\r\nReferrer-Policy: no-referrer\r\nCache-Control: no-cache\r\n" % policy
