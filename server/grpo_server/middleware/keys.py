"""Keys as bytes: out of a file, out of the environment, out of a header.

A key is compared as the bytes of its UTF-8. A header that is not UTF-8 is read as latin-1, which is how Python's http.client
(and so requests) writes text: either way of sending a key that is not ASCII means the same key.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

BYTE_ORDER_MARK = "\ufeff"


def bearer_of(authorization: str | None) -> bytes | None:
    """The key of an Authorization header as an ASGI server gives it (each byte a character), in UTF-8.

    None when there is no key in it: no header, another scheme than Bearer, or nothing behind that.
    """
    scheme, _, sent = (authorization or "").encode("latin-1").strip().partition(b" ")
    sent = sent.strip()
    if scheme.lower() != b"bearer" or not sent:
        return None
    try:
        sent.decode()
    except UnicodeDecodeError:
        return sent.decode("latin-1").encode()
    return sent


def read_keys(setting: str, path: Path | None, from_environment: SecretStr | None) -> tuple[bytes, ...]:
    """Keys of a file, one a line, lines with # in front left out, and the one of the environment.

    Raises ValueError naming the setting, and never the key: no key, a file that is not UTF-8, or a key that no header can
    carry.
    """
    keys: list[bytes] = []
    if path is not None:
        lines = [line.strip() for line in _text_of(setting, path).split("\n")]
        keys = [
            key_bytes(setting, f"line {n} of {path}", s) for n, s in enumerate(lines, 1) if s and not s.startswith("#")
        ]
        if not keys:
            raise ValueError(f"{setting}: {path} holds no key; write one a line")
    if from_environment is not None:
        name = setting.removesuffix("_file")
        if not (key := from_environment.get_secret_value().lstrip(BYTE_ORDER_MARK).strip()):
            raise ValueError(f"{name}: the key in the environment is empty; unset it, or set one")
        keys.append(key_bytes(name, "the environment", key))
    return tuple(keys)


def _text_of(setting: str, path: Path) -> str:
    try:
        return path.read_text("utf-8-sig").lstrip(BYTE_ORDER_MARK)
    except OSError as error:
        raise ValueError(f"{setting}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{setting}: {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def key_bytes(setting: str, where: str, key: str) -> bytes:
    """A key as it is compared. Raises ValueError, naming setting and place and not the key, when no header can carry it."""
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in key):
        raise ValueError(f"{setting}: the key in {where} holds a control character, which no header can carry")
    return key.encode(errors="surrogateescape")  # bytes of the environment that are not UTF-8 stay what they are
