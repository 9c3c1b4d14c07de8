"""NAME=SOURCE, as --model and --adapter take it: what is hosted, and what clients call it. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = r"[A-Za-z0-9][\w.-]*"
_NAMED = re.compile(rf"({NAME})=(.+)", re.DOTALL)
# In the environment several stand in one variable: a comma parts two of them where a name and = follow it.
_NEXT = re.compile(rf",(?={NAME}=)")
LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Named:
    """source: as `EngineConfig.model`, or an adapter's directory. name: None: what the engine calls it. base: the name of the
    reference that an adapter is laid on, "" for the first; None: it is no adapter."""

    source: str
    name: str | None = None
    base: str | None = None

    @property
    def label(self) -> str:
        """What operators know it by, as long as the server runs."""
        return self.name or self.source


def read_named(text: str) -> Named:
    """SOURCE or NAME=SOURCE. A path that holds a = and is there is a path."""
    found = _NAMED.fullmatch(text)
    if found is None or Path(text).exists():
        return Named(text)
    return Named(found[2], found[1])


def read_adapter(text: str, names: frozenset[str]) -> Named:
    """NAME=PATH or NAME=PATH@BASE. names: of the models; what follows an @ and is none of them belongs to the path.

    Raises ValueError where the name is missing.
    """
    found = _NAMED.fullmatch(text)
    if found is None:
        raise ValueError(f"adapter: {text} has no name; write NAME=PATH, or NAME=PATH@BASE")
    path, at, base = found[2].rpartition("@")
    return Named(path, found[1], base) if at and base in names else Named(found[2], found[1], "")


def one_or_several(value: Any) -> str | tuple[str, ...]:
    """What a setting says of one or several: a text, a list, or a mapping of names to sources. A lone one is itself.

    Raises ValueError for what is none of these.
    """
    several = all_of(value)
    if not several:
        raise ValueError("there must be one at least")
    return several[0] if len(several) == 1 else several


def all_of(value: Any) -> tuple[str, ...]:
    """The same, a lone one as one of one."""
    if isinstance(value, Mapping):
        return tuple(f"{name}={source}" for name, source in value.items())
    listed: list[Any] = (
        [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [None]
    )
    if not all(isinstance(one, str) and one for one in listed):
        raise ValueError("must be a model, or several as NAME=MODEL")
    if isinstance(value, str):
        return tuple(_NEXT.split(value)) if _NAMED.match(value) else (value,)
    joined: list[str] = []
    for one in listed:
        if joined and not _NAMED.match(one):  # the command line's reader parts at commas, which a path may hold
            whole = f"{joined.pop()},{one}"
            if _is_a_path(one) and not Path(read_named(whole).source).exists():
                raise ValueError(f"{one} has no name, which each but the first needs: write NAME={one}")
            one = whole
        joined.append(one)
    return tuple(joined)


def _is_a_path(text: str) -> bool:
    """Whether it is one by itself, and not what follows a comma in another."""
    return Path(text).is_absolute() or text.startswith(("./", "../", "~")) or Path(text).exists()


def references_of(models: tuple[str, ...], served_name: str | None, adapters: tuple[str, ...]) -> tuple[Named, ...]:
    """All that are hosted from the start, the one that answers by default first, adapters behind the models.

    served_name: of the first, if it has none. Raises ValueError where names do not fit together.
    """
    first, *others = map(read_named, models)
    if served_name is not None:
        if first.name is not None:
            raise ValueError("served_name: the first model has a name already (NAME=MODEL); leave one of them out")
        first = Named(first.source, served_name)
    names = frozenset(one.label for one in (first, *others))
    references = (first, *others, *(read_adapter(text, names) for text in adapters))
    _check_names(references)
    return references


def _check_names(references: tuple[Named, ...]) -> None:
    """Raises ValueError for a name that is there twice, or is longer than a path may be."""
    seen: set[str] = set()
    for one in references:
        if one.label in seen:
            raise ValueError(f"the name {one.label} is there twice; give each reference a name of its own")
        if one.name is not None and len(one.name) > LONGEST_NAME:
            raise ValueError(f"the name {one.name:.20}... is longer than {LONGEST_NAME} characters")
        seen.add(one.label)
