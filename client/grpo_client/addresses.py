"""A server's address and the key for it, checked before anything is sent. No error here repeats what may be secret."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from grpo_client.arguments.readers import kind_of
from grpo_client.errors import InvalidSetting


def base_of(url: Any) -> str:
    """A base URL without its trailing slash. Raises InvalidSetting."""
    if not isinstance(url, str):
        raise InvalidSetting(f"base_url must be a string such as http://localhost:8000, got {kind_of(url)}")
    text = url.strip()
    shown = without_secrets(text)
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, half a bracket
        parts, sound = None, False
    if parts is None or not sound or not text.isprintable() or " " in text:
        raise InvalidSetting(f"base_url must look like http://localhost:8000, got {shown!r}")
    if parts.username is not None or parts.password is not None:
        raise InvalidSetting(f"base_url must not hold a password, which logs would show ({shown}); give it as api_key")
    if parts.query or parts.fragment:
        raise InvalidSetting(f"base_url must end before ? and # ({shown}); a key is given as api_key")
    return text.rstrip("/")


def without_secrets(url: str) -> str:
    """A URL as it may be shown: without user, password, query and fragment."""
    head = url.partition("#")[0].partition("?")[0]
    scheme, slashes, rest = head.rpartition("://") if "://" in head else ("", "", head)
    return f"{scheme}{slashes}{'***@' if '@' in rest else ''}{rest.rpartition('@')[2]}"[:200]


def read_key(key: Any) -> str | None:
    """A key as it goes into a header, or None for none. Raises InvalidSetting, which does not repeat it."""
    if key is None:
        return None
    if callable(getattr(key, "get_secret_value", None)):  # pydantic's SecretStr
        key = key.get_secret_value()
    if not isinstance(key, str):
        raise InvalidSetting(f"api_key must be a string, got a value of type {type(key).__name__}")
    key = key.strip()  # a file that a key is read from ends in a newline
    if not key.isprintable():
        raise InvalidSetting("api_key holds a line break or another control character, which no header can carry")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidSetting("api_key is no text that UTF-8 can encode") from None
    return key or None
