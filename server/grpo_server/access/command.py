"""`grpo-server keys`: make a key, hash one, check a keys file. A key is shown once, when it is made, and stored nowhere."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from grpo_server.access.caller import Scope
from grpo_server.access.key_file import SETTING, digest_of, read_entries
from grpo_server.middleware.keys import key_bytes

PREFIX = "grpo_"  # for people, and for programs that look for secrets in what is published
RANDOM_BYTES = 32
EXIT_USAGE = 2


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 2, with one line on stderr, for a file or a name that cannot be used."""
    asked = _parser().parse_args(argv)
    try:
        return asked.run(asked)
    except (OSError, ValueError) as error:
        print(f"grpo-server keys: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("grpo-server keys", description="Make and check named keys (--keys-file).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="make a key; print it, and its entry with the hash alone")
    new.add_argument("name", help="who gets it, as logs and metrics will name it")
    new.add_argument("--scopes", nargs="+", choices=get_args(Scope), default=["score"], help="what it opens (score)")
    new.add_argument("--file", type=Path, help="add the entry to this YAML or TOML file, and print the key alone")
    new.set_defaults(run=_new)
    hashed = commands.add_parser("hash", help="read a key from stdin, print the hash for the file")
    hashed.set_defaults(run=_hash)
    check = commands.add_parser("check", help="read a keys file as the server would, and say who is in it")
    check.add_argument("file", type=Path)
    check.set_defaults(run=_check)
    return parser


def _new(asked: argparse.Namespace) -> int:
    key = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    scopes = ", ".join(dict.fromkeys(asked.scopes))
    as_yaml = f"  - name: {asked.name}\n    hash: {_hash_of(key.encode())}\n    scopes: [{scopes}]\n"
    _checked("keys:\n" + as_yaml, ".yaml", None)
    if asked.file is None:
        _say(
            f"# The key. It is not stored: give it to its holder now (GRPO_API_KEY).\n# {key}\nkeys:\n{as_yaml}", end=""
        )
        return 0
    if asked.file.suffix == ".toml":
        quoted = ", ".join(f'"{scope}"' for scope in dict.fromkeys(asked.scopes))
        entry = f'[[keys]]\nname = "{asked.name}"\nhash = "{_hash_of(key.encode())}"\nscopes = [{quoted}]\n'
    else:
        entry = as_yaml
    _add(asked.file, entry, asked.name)
    _say(key)
    return 0


def _hash(asked: argparse.Namespace) -> int:
    if not (key := sys.stdin.read().strip()):
        raise ValueError("there is no key on stdin")
    _say(_hash_of(key_bytes("key", "stdin", key)))
    return 0


def _check(asked: argparse.Namespace) -> int:
    for entry, digests in read_entries(asked.file):
        limits = ", ".join(
            f"{name} {value}"
            for name in ("tokens_per_minute", "max_queue_tokens")
            if (value := getattr(entry, name)) is not None
        )
        _say(
            f"{entry.name}: {', '.join(sorted(entry.scopes))}; {entry.priority} priority; {limits or 'no limits'}; "
            f"{len(digests)} {'key' if len(digests) == 1 else 'keys'}"
        )
    return 0


def _hash_of(key: bytes) -> str:
    return f"sha256:{digest_of(key).hex()}"


def _add(path: Path, entry: str, name: str) -> None:
    """Put an entry at the end of the file, whole or not at all. Raises ValueError when the file would not hold it then."""
    before = path.read_text("utf-8-sig") if path.exists() else ""
    if not before.strip() and path.suffix != ".toml":
        before = "keys:\n"
    elif before and not before.endswith("\n"):
        before += "\n"
    _checked(before + entry, path.suffix, path, name)


def _checked(text: str, suffix: str, target: Path | None, name: str | None = None) -> None:
    """Read the text as the server would; then let it take the place of the target, with its mode, or 0600."""
    directory = None if target is None else target.absolute().parent
    with tempfile.NamedTemporaryFile("w", suffix=suffix, dir=directory, delete=False, encoding="utf-8") as file:
        file.write(text)
    written = Path(file.name)
    try:
        try:
            names = [entry.name for entry, _ in read_entries(written)]
        except ValueError as error:
            raise ValueError(str(error).replace(str(written), str(target or "the new entry"))) from None
        if target is None:
            return
        if name not in names:
            raise ValueError(f"{SETTING}: {target} does not end in its list of keys; put the entry in by hand")
        if target.exists():
            os.chmod(written, target.stat().st_mode & 0o777)
        written.replace(target)
    finally:
        written.unlink(missing_ok=True)


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
