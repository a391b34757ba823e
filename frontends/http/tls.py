"""HTTPS: the server's certificate, and clients' where they must have one."""

import ssl
from collections.abc import Callable

from conch.errors import InvalidArgument
from conch.settings import Settings


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """None for plain HTTP. Raises ``InvalidArgument`` for files that do not serve."""
    mutual = settings.http_use_ssl_mutual
    if not (settings.http_use_ssl or mutual):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    certificate, key = settings.http_server_cert, settings.http_server_key
    _read("--http-server-cert", certificate)
    _read("--http-server-key", key)
    _load(
        lambda: context.load_cert_chain(certificate, key, password=_no_password),
        f"--http-server-cert '{certificate}' and --http-server-key '{key}' are not a certificate and its key, in PEM",
    )
    if mutual:
        root = settings.http_root_cert
        _read("--http-root-cert", root)
        _load(
            lambda: context.load_verify_locations(root), f"--http-root-cert '{root}' holds no usable certificate in PEM"
        )
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _no_password() -> str:
    # otherwise OpenSSL would ask the terminal
    raise InvalidArgument("--http-server-key is protected by a password; give a key without one")


def _read(flag: str, path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise InvalidArgument(f"{flag} '{path}' cannot be read: {error.strerror}") from None


def _load(load: Callable[[], None], wrong: str) -> None:
    try:
        load()
    except OSError as error:  # ssl.SSLError is one
        raise InvalidArgument(f"{wrong} ({error.strerror or error})") from None
