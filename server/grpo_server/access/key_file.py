"""The file of named keys, YAML or TOML, read and checked as a whole. Errors name file, entry and field, and no key.

    keys:
      - name: trainer-a
        hash: sha256:9f86d081...       # of the key's UTF-8 bytes; or  key: the key itself
        scopes: [score]                # score, admin, metrics
        tokens_per_minute: 2M
        max_queue_tokens: 256Ki
        priority: high                 # high, normal, low

`key` and `hash` may each be a list: all of them open while one takes the place of another.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

from grpo_client.sizes import read_size
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from grpo_server.access.caller import Scope
from grpo_server.config.file import read_mapping
from grpo_server.middleware.keys import key_bytes
from grpo_server.scheduler.accounts import AccountLimits, Priority

SETTING = "keys_file"
# Names are labels of metrics, and every key is compared with what a client sends.
MOST_KEYS = 1000
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
HASH = r"^sha256:[0-9a-f]{64}$"


def digest_of(key: bytes) -> bytes:
    """What is kept of a key. Keys are random (`grpo-server keys new`), so a salt or a slow hash would add nothing."""
    return hashlib.sha256(key).digest()


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) or value is None else [value]


Tokens = Annotated[int, BeforeValidator(read_size), Field(ge=1)]


class Entry(BaseModel):
    """One named key."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(pattern=NAME)
    key: Annotated[tuple[SecretStr, ...], BeforeValidator(_listed)] = ()
    hash: Annotated[tuple[Annotated[str, Field(pattern=HASH)], ...], BeforeValidator(_listed)] = ()
    scopes: frozenset[Scope] = Field(frozenset({"score"}), min_length=1)
    tokens_per_minute: Tokens | None = None
    max_queue_tokens: Tokens | None = None
    priority: Priority = "normal"

    @model_validator(mode="after")
    def _has_a_key(self) -> Entry:
        if not self.key and not self.hash:
            raise ValueError("has neither key nor hash; `grpo-server keys new` makes one")
        return self

    @property
    def limits(self) -> AccountLimits:
        return AccountLimits(self.tokens_per_minute, self.max_queue_tokens, self.priority)

    def digests(self) -> list[bytes]:
        """Of all its keys. Raises ValueError for a key that no header can carry."""
        keys = [key_bytes(SETTING, self.name, key.get_secret_value().strip()) for key in self.key]
        return [*map(digest_of, keys), *(bytes.fromhex(text.removeprefix("sha256:")) for text in self.hash)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: list[Entry] = Field(min_length=1, max_length=MOST_KEYS)


def read_entries(path: Path) -> list[tuple[Entry, list[bytes]]]:
    """Each entry with the digests of its keys. Raises ValueError, one sentence that shows no key."""
    written = read_mapping(path, SETTING)
    try:
        entries = _File.model_validate(written).keys
    except ValidationError as error:
        raise ValueError(f"{SETTING}: {path}: {_fault(error, written)}") from None
    found = [(entry, entry.digests()) for entry in entries]
    owners: dict[bytes, str] = {}
    names: set[str] = set()
    for entry, digests in found:
        if entry.name in names:
            raise ValueError(
                f"{SETTING}: {path}: the name {entry.name} is there twice; give each key a name of its own"
            )
        names.add(entry.name)
        for digest in digests:
            if digest in owners:
                raise ValueError(f"{SETTING}: {path}: {owners[digest]} and {entry.name} have a key in common")
            owners[digest] = entry.name
    return found


def _fault(error: ValidationError, written: dict[str, Any]) -> str:
    """The first fault, at the name of its entry, in words that repeat no value."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    loc: list[int | str] = [*fault["loc"]]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    entry = written["keys"][loc[1]] if len(loc) > 1 else None
    name = entry.get("name") if isinstance(entry, dict) else None
    whose = f" ({name:.63})" if isinstance(name, str) and re.match(NAME, name) else ""
    remedy = {
        "string_type": "; put quotes around it",
        "string_pattern_mismatch": "; a hash is sha256: and 64 hexadecimal digits, a name letters, digits and ._-",
        "extra_forbidden": "; an entry has name, key or hash, scopes, tokens_per_minute, max_queue_tokens and priority",
        "missing": "; the file holds keys:, a list of entries with a name each",
    }.get(fault["type"], "")
    return f"{place}{whose}: {fault['msg']}{remedy}"
