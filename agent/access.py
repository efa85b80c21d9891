"""Who may talk to the agent: everybody on this machine, and from elsewhere whoever has a token, over TLS.

* :class:`Tokens`: bearer tokens from a file that others cannot read.
* :class:`Tls`: certificate and key.
* :class:`Access`: both, where they are configured; decides about addresses and requests.

A connection over loopback or a Unix socket needs neither: file permissions and the machine's own users guard those.
Knows nothing of servers; HTTP and gRPC ask it alike.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from subnets.errors import InputError

_LOCAL_NAMES = ("localhost", "ip6-localhost", "")
_MIN_TOKEN, _MAX_FILE_BYTES = 16, 64 * 1024
_SCHEME = "bearer "


class Tokens:
    """Bearer tokens, kept as digests.

    Args:
        tokens: any of them opens.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Tokens from a file, one a line; several, so that one can be replaced while clients still use the other.

        Raises:
            InputError: it cannot be read, others can read or change it, or a token is too short to be one.
        """
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                content = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); write a token into it") from None
        if mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise InputError(f"{path}: mode {mode:o} lets others read or change the token; do chmod 600 {path}")
        lines = content.decode("ascii", "replace").split()
        if len(content) > _MAX_FILE_BYTES or not lines or any(not _is_token(line) for line in lines):
            raise InputError(
                f"{path}: must hold one token a line, each at least {_MIN_TOKEN} printable ASCII characters; "
                "make one with: openssl rand -hex 32"
            )
        return cls(lines)

    def authorised(self, authorization: str) -> bool:
        """Whether the value of an ``Authorization`` header names a token; takes equally long whichever it is not."""
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            return False
        given = hashlib.sha256(authorization[len(_SCHEME) :].strip().encode("utf-8", "replace")).digest()
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(given, digest)
        return found


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Certificate chain and private key, PEM files."""

    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """What a server needs of them: TLS 1.2 or newer.

        Raises:
            InputError: a file cannot be read, or they do not belong together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.pem()
        try:
            # An empty password, or OpenSSL would ask for that of an encrypted key at the terminal.
            context.load_cert_chain(self.cert, self.key, password="")
        except (ssl.SSLError, ValueError, OSError) as error:
            raise InputError(
                f"{self.cert} and {self.key}: no certificate with its unencrypted private key in PEM form ({error})"
            ) from None
        return context

    def pem(self) -> tuple[bytes, bytes]:
        """(certificate chain, key) as they stand in the files.

        Raises:
            InputError: one cannot be read, or others can read the key.
        """
        content = []
        for path in (self.cert, self.key):
            try:
                content.append(path.read_bytes())
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        mode = stat.S_IMODE(self.key.stat().st_mode)
        if mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise InputError(f"{self.key}: mode {mode:o} lets others read or change the key; do chmod 600 {self.key}")
        return content[0], content[1]


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen over TCP, resolved."""

    family: int
    address: tuple[Any, ...]  # as socket.bind takes it
    public: bool  # can be reached from other machines


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of those who come from elsewhere; None = not configured."""

    tokens: Tokens | None = None
    tls: Tls | None = None

    @classmethod
    def read(cls, token_file: str = "", cert: str = "", key: str = "") -> Access:
        """From configured paths, empty = none.

        Raises:
            InputError: a file is not fit, or one of certificate and key is missing.
        """
        if bool(cert) != bool(key):
            raise InputError("serve.tls_cert and serve.tls_key belong together; give both or neither")
        tls = Tls(cert=Path(cert), key=Path(key)) if cert else None
        if tls is not None:
            tls.context()
        return cls(tokens=Tokens.read(Path(token_file)) if token_file else None, tls=tls)

    def resolve(self, host: str, port: int) -> Address:
        """An address to listen at.

        Raises:
            InputError: it is none of this machine's, or can be reached from other machines without token and TLS.
        """
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            raise InputError(f"host '{host}' is not an address of this machine ({error}); give 127.0.0.1") from None
        public = not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
        if public and (self.tokens is None or self.tls is None):
            raise InputError(
                f"host '{host}' can be reached from other machines: set token_file, tls_cert and tls_key under "
                "[serve], or give 127.0.0.1"
            )
        return Address(family=family, address=address, public=public)

    def refusal(self, *, public: bool, host: str, authorization: str) -> tuple[int, str] | None:
        """Why a request is refused, as an HTTP status and a sentence; None = it is not.

        Args:
            public: it came over an address that other machines can reach.
            host: its ``Host`` header. Over loopback it must name this machine: a web page elsewhere may have its own
                name point here, and a browser would then let it read the answers.
            authorization: its ``Authorization`` header.
        """
        if public:
            if self.tokens is None or not self.tokens.authorised(authorization):
                return 401, "a bearer token of this agent is needed; send 'Authorization: Bearer TOKEN'"
        elif not is_local_name(host):
            return 400, "the Host header names another machine; ask for localhost"
        return None


@functools.lru_cache(maxsize=64)  # clients say the same every time
def is_local_name(host: str) -> bool:
    """Whether a ``Host`` header names this machine over loopback."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]").lower()
    if name in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_token(text: str) -> bool:
    return len(text) >= _MIN_TOKEN and text.isascii() and text.isprintable()
