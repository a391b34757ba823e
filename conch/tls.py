"""The files of TLS, checked: the server's certificate, and whom clients' certificates must come from."""

import ssl
from collections.abc import Callable

from conch.errors import InvalidArgument
from conch.settings import Protocol, Settings

_NEXT_PROTOCOLS = {"http": "http/1.1", "grpc": "h2"}


def server_context(settings: Settings, protocol: Protocol) -> ssl.SSLContext | None:
    """None for a protocol without TLS. Raises ``InvalidArgument`` for files that do not serve."""
    mutual = getattr(settings, f"{protocol}_use_ssl_mutual")
    if not (mutual or getattr(settings, f"{protocol}_use_ssl")):
        return None
    certificate, key, root = (
        getattr(settings, f"{protocol}_{file}") for file in ("server_cert", "server_key", "root_cert")
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _read(f"--{protocol}-server-cert", certificate)
    _read(f"--{protocol}-server-key", key)

    def no_password() -> str:
        # otherwise OpenSSL would ask the terminal
        raise InvalidArgument(f"--{protocol}-server-key is protected by a password; give a key without one")

    _load(
        lambda: context.load_cert_chain(certificate, key, password=no_password),
        f"--{protocol}-server-cert '{certificate}' and --{protocol}-server-key '{key}' are not a certificate and its "
        "key, in PEM",
    )
    if mutual:
        _read(f"--{protocol}-root-cert", root)
        _load(
            lambda: context.load_verify_locations(root),
            f"--{protocol}-root-cert '{root}' holds no usable certificate in PEM",
        )
        context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([_NEXT_PROTOCOLS[protocol]])
    return context


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
