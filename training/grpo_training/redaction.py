"""No key, token or password in a file, a log or an error: what a text shows in their place.

`redacted` knows a secret by where it stands (a URL's userinfo, an Authorization header, an option such as --api-key) and by
the look of well-known tokens; `scrubbed` also knows the values of this process's environment. Both are the second line: a
field that holds a key is a `SecretStr`, and a key is best left in the environment.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

SHOWN = "***"
_SECRET = r"(?:api[-_]?key|access[-_]?key|token|secret|passw(?:or)?d|credentials?)"
_FIELD = re.compile(rf"(?:.*[-_.])?{_SECRET}|authorization", re.IGNORECASE)
_VARIABLE = re.compile(rf"(?:.*_)?(?:key|pat|auth|{_SECRET})", re.IGNORECASE)
_SHORTEST = 8  # characters of a variable's value that is looked for: a shorter one may be an ordinary word

_PATTERNS = (
    # scheme://user:password@host
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s'\"]*@", re.IGNORECASE), rf"\1{SHOWN}@"),
    # ?token=... of a URL
    (re.compile(rf"([?&][\w.-]*{_SECRET}[\w.-]*=)[^&\s'\"]+", re.IGNORECASE), rf"\1{SHOWN}"),
    # a header: Authorization: Bearer ..., X-Api-Key: ...
    (
        re.compile(
            rf"\b((?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]*{_SECRET}|(?<![\w.])api[-_]?key)(['\"]?\s*:\s*(?:b?['\"])?)[^'\"\r\n]+",
            re.IGNORECASE,
        ),
        rf"\1\2{SHOWN}",
    ),
    # JSON: "hub_token": "..."
    (re.compile(rf"(\"[\w.-]*{_SECRET}\"\s*:\s*\")[^\"]*", re.IGNORECASE), rf"\1{SHOWN}"),
    # --api-key=..., HF_TOKEN=...
    (re.compile(rf"((?<!\S)--[\w-]*{_SECRET}=)[^\s'\"]+", re.IGNORECASE), rf"\1{SHOWN}"),
    (re.compile(r"(\b[A-Z0-9_]*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)=)[^\s'\"]+"), rf"\1{SHOWN}"),
    (re.compile(r"\b(bearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{SHOWN}"),
    # tokens that say what they are: Hugging Face, OpenAI, GitHub, AWS
    (re.compile(r"\b(?:hf_\w{16,}|sk-[\w-]{16,}|gh[opsu]_\w{20,}|github_pat_\w{20,}|AKIA[A-Z0-9]{12,})"), SHOWN),
)
# The word after one of these is a secret: --api-key VALUE, curl -u user:password.
_OPTION = re.compile(rf"--?[\w-]*{_SECRET}", re.IGNORECASE)
_CURL_OPTION = re.compile(r"-u|--user|--proxy-user|--oauth2-bearer")


def redacted(value: Any) -> Any:
    """The same nest of JSON values, with `***` where a secret stands."""
    if isinstance(value, str):
        for pattern, shown in _PATTERNS:
            value = pattern.sub(shown, value)
        return value
    if isinstance(value, Mapping):
        return {k: SHOWN if _names_secret(k) and isinstance(v, str) and v else redacted(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(v) for v in value]
    return value


def redacted_command(words: Sequence[str]) -> list[str]:
    """The words of a command, without those that follow an option that takes a secret."""
    curl = bool(words) and PurePath(words[0]).name == "curl"
    return [SHOWN if i and _takes_secret(words[i - 1], curl=curl) else redacted(word) for i, word in enumerate(words)]


def scrubbed(text: str) -> str:
    """A text for people's eyes: `redacted`, and without the values of the environment's keys, tokens and passwords."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _VARIABLE.fullmatch(name):
            text = text.replace(value, SHOWN)
    return redacted(text)


class ScrubbingFilter(logging.Filter):
    """On a handler: whatever a library logs, no secret that this page knows comes through."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = scrubbed(record.getMessage()), None
        return True


def _names_secret(key: object) -> bool:
    return isinstance(key, str) and bool(_FIELD.fullmatch(key))


def _takes_secret(option: str, *, curl: bool) -> bool:
    return bool(_OPTION.fullmatch(option)) or (curl and bool(_CURL_OPTION.fullmatch(option)))
