"""Which certificates a client trusts, and which it shows: files, by argument or from the environment."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from grpo_client.arguments.readers import kind_of
from grpo_client.errors import InvalidSetting

VARIABLES = {"ca_file": "GRPO_CA_FILE", "cert_file": "GRPO_CERT_FILE", "key_file": "GRPO_KEY_FILE"}


@dataclass(frozen=True, slots=True)
class TLS:
    """PEM files for https:// URLs. ca_file: the authorities that a server's certificate must come from, in place of the public
    ones. cert_file, key_file: what a server with mutual TLS is shown; the key may be in cert_file."""

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None

    @classmethod
    def from_environment(cls) -> Self:
        """GRPO_CA_FILE, GRPO_CERT_FILE and GRPO_KEY_FILE."""
        return cls(**{name: os.environ.get(variable) or None for name, variable in VARIABLES.items()})

    def __post_init__(self) -> None:
        for name, variable in VARIABLES.items():
            value: Any = getattr(self, name)
            if value is not None and not isinstance(value, str | Path):
                raise InvalidSetting(f"tls: {name} ({variable}) must be the path of a PEM file, got {kind_of(value)}")
        if self.key_file is not None and self.cert_file is None:
            raise InvalidSetting("tls: key_file (GRPO_KEY_FILE) needs cert_file (GRPO_CERT_FILE), its certificate")

    def context(self, public: Callable[[], ssl.SSLContext]) -> ssl.SSLContext | None:
        """What httpx takes as `verify`; None where nothing is asked for. public: makes a context that trusts the public
        authorities. Raises InvalidSetting that names the file at fault."""
        if self.ca_file is None and self.cert_file is None:
            return None
        context = public() if self.ca_file is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if (ca := self.ca_file) is not None:
            _read(f"ca_file (GRPO_CA_FILE) {ca}", lambda: context.load_verify_locations(ca))
        if (cert := self.cert_file) is not None:
            what = f"cert_file (GRPO_CERT_FILE) {cert}"
            _read(what, lambda: context.load_cert_chain(cert, self.key_file, password=_encrypted))
        return context


def _encrypted() -> str:
    """Asked when the key is encrypted, in place of the terminal."""
    raise ValueError("its private key is encrypted")


def _read(what: str, read: Callable[[], None]) -> None:
    try:
        read()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidSetting(f"tls: {what} cannot be used: {reason or type(error).__name__}") from None
