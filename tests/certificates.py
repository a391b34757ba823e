"""Certificates for tests of TLS, made with the ``openssl`` command."""

import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command")


class Certificate(NamedTuple):
    certificate: str
    key: str


def make(directory: Path, name: str, signer: Certificate | None = None) -> Certificate:
    """PEM files of a certificate for 127.0.0.1 and localhost: one that signs others, or one that is signed."""
    made = Certificate(str(directory / f"{name}.pem"), str(directory / f"{name}.key"))
    extensions = ["basicConstraints=critical,CA:TRUE"]
    options: list[str] = []
    if signer is not None:
        extensions = ["basicConstraints=critical,CA:FALSE", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        options = ["-CA", signer.certificate, "-CAkey", signer.key]
    for extension in extensions:
        options += ["-addext", extension]
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "2", "-subj", f"/CN={name}", "-keyout", made.key, "-out", made.certificate, *options),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return made


class Files:
    """An authority, and what it signed: a server's certificate and a client's."""

    def __init__(self, directory: Path) -> None:
        self.authority = make(directory, "authority")
        self.server = make(directory, "server", self.authority)
        self.client = make(directory, "client", self.authority)

    def settings(self, protocol: str, mutual: bool = False) -> dict[str, Any]:
        return {
            f"{protocol}_use_ssl": True,
            f"{protocol}_use_ssl_mutual": mutual,
            f"{protocol}_server_cert": self.server.certificate,
            f"{protocol}_server_key": self.server.key,
            f"{protocol}_root_cert": self.authority.certificate,
        }
