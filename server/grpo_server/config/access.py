"""Where the server listens, what it shows to browsers, and who may use it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, CliSuppress

SECRETS = frozenset({"api_key", "admin_key"})


class AccessSettings(BaseSettings):
    """Part of `ServerConfig`."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 opens it to the network.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 picks a free one and logs it.")
    root_path: str = Field(
        "",
        pattern="^(/.*)?$",
        description="Prefix under which a proxy publishes the server, and which it strips, such as /ref.",
    )

    ui: bool = Field(True, description="Serve the inspector, pages for a browser, at /ui.")
    ui_hosts: tuple[str, ...] = Field(
        (),
        description="Names under which browsers reach the inspector, besides localhost, addresses and this machine's name.",
    )
    runs: Path | None = Field(
        None, description="Directory of runs of grpo-train, or one of them, that /ui/runs shows; by default none."
    )

    api_key_file: Path | None = Field(
        None,
        description="File with the keys that may score, one per line. Also GRPO_SERVER_API_KEY. None: open to all.",
    )
    admin_key_file: Path | None = Field(
        None, description="File with the keys for /admin. Also GRPO_SERVER_ADMIN_KEY. None: /admin is closed."
    )
    keys_file: Path | None = Field(
        None,
        description="YAML or TOML file of named keys with scopes and limits, read again at SIGHUP and when it changes; "
        "grpo-server keys new makes a key.",
    )
    api_key: CliSuppress[SecretStr | None] = Field(None, description="From the environment only: ps shows flags.")
    admin_key: CliSuppress[SecretStr | None] = Field(None, description="From the environment only: ps shows flags.")
    tls_cert: Path | None = Field(
        None, description="PEM file with the server's certificate and its chain: serve HTTPS."
    )
    tls_key: Path | None = Field(
        None, description="PEM file with the certificate's private key, if it is not in --tls-cert."
    )
    tls_client_ca: Path | None = Field(
        None, description="PEM file of the authorities that a client's certificate must come from: mutual TLS."
    )
