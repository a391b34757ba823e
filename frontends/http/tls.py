"""HTTPS: the server's certificate, and clients' where they must have one."""

import ssl

from conch.settings import Settings
from frontends.tls import checked_context


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """None for plain HTTP. Raises ``InvalidArgument`` for files that do not serve."""
    mutual = settings.http_use_ssl_mutual
    if not (settings.http_use_ssl or mutual):
        return None
    root = settings.http_root_cert if mutual else None
    context = checked_context("http", settings.http_server_cert, settings.http_server_key, root)
    context.set_alpn_protocols(["http/1.1"])
    return context
