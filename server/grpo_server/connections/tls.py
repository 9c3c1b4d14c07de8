"""TLS, and mutual TLS where clients must show a certificate; certificates are read again while the server runs."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from grpo_server.config import ServerConfig

logger = logging.getLogger(__name__)


class Certificates:
    """The server's certificate, and the authorities of its clients'. Handshakes take what was read last; connections that are
    open keep what they have.

    Raises ValueError naming the setting when a file cannot be used.
    """

    def __init__(self, cert: Path, key: Path | None, client_ca: Path | None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self.context = self._made()

    @classmethod
    def load(cls, config: ServerConfig) -> Self | None:
        """None: the server speaks plain HTTP."""
        return None if config.tls_cert is None else cls(config.tls_cert, config.tls_key, config.tls_client_ca)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for path in (self._cert, self._key, self._client_ca) if path is not None)

    def reload(self) -> None:
        """Read the files again; certificate and key that do not belong together change nothing."""
        try:
            made = self._made()
        except ValueError as error:
            logger.error("%s; the certificate read before stays in use until that is mended", error)
            return
        self.context = made
        logger.info("certificates read again from %s", ", ".join(map(str, self.files)))

    def uvicorn_settings(self) -> dict[str, Any]:
        """Keyword arguments of `uvicorn.Config`. The outer context only asks the latest one to take each handshake."""
        outer = self._made()
        outer.sni_callback = self._take_latest
        return {"ssl_context_factory": lambda config, default: outer}

    def _take_latest(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self.context

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        what = f"tls_cert: {self._cert}" if self._key is None else f"tls_cert and tls_key: {self._cert} and {self._key}"
        _read(what, lambda: context.load_cert_chain(self._cert, self._key, password=_encrypted))
        if (ca := self._client_ca) is not None:
            _read(f"tls_client_ca: {ca}", lambda: context.load_verify_locations(ca))
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _encrypted() -> str:
    """Asked when the key is encrypted, in place of the terminal."""
    raise ValueError("the private key is encrypted")


def _read(what: str, read: Callable[[], None]) -> None:
    try:
        read()
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or type(error).__name__
        raise ValueError(f"{what}: {reason.strip().rstrip('.')}; give PEM files that belong together") from error
    except ValueError as error:
        raise ValueError(f"{what}: {error}; decrypt it first (openssl pkey), and guard the file") from None
