"""The text of a question: `{field}` is put in, every other brace is itself.

    Template("{question}\nPut the result into \\boxed{}.")

Nothing but a name may stand in the braces: no index, attribute, conversion or width. `{{` and `}}` are single braces, so that
`\\boxed{{answer}}` is written as it looks. The answer cannot be named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from grpo_training.config import ConfigError

HIDDEN = "answer"
_PIECE = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)([.\[!:][^{}]*)?\}")


class Template:
    """Made once; raises ConfigError for a template that names the answer, or nothing at all."""

    def __init__(self, text: str) -> None:
        self._pieces = list(_pieces(text))  # text, field, text, field, ..., text
        self.fields = tuple(self._pieces[1::2])
        if HIDDEN in self.fields:
            raise ConfigError(
                f"task.template names {HIDDEN}, which would tell the policy what it is asked for: leave it out, or write "
                f"{{{{{HIDDEN}}}}} for the word in braces"
            )
        if not self.fields:
            raise ConfigError(
                "task.template names no field, so that all prompts would be the same: write {question} in it"
            )

    def render(self, entry: Mapping[str, Any], where: str) -> str:
        """where: file and row of the entry, for the errors. Raises ConfigError for a field that is not there or is no text."""
        fields = {**_mapping(entry.get("metadata")), **entry}
        values: list[str] = []
        for name in self.fields:
            if name not in fields:
                known = ", ".join(sorted(f for f in fields if f != HIDDEN))
                raise ConfigError(
                    f"task.template names {name!r}, but {where} has only: {known}. Write {{{{{name}}}}} for the word in braces"
                )
            value = fields[name]
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise ConfigError(
                    f"{where}: field {name} is {kind_of(value)}, and a prompt is made of text and numbers"
                )
            values.append(str(value))
        texts = self._pieces[::2]
        return "".join(text + value for text, value in zip(texts, [*values, ""], strict=True))


def kind_of(value: object) -> str:
    """A value's type in JSON's words."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def _pieces(text: str) -> list[str]:
    pieces, literal, end, open_pairs = [], "", 0, 0
    for match in _PIECE.finditer(text):
        literal += text[end : match.start()]
        end = match.end()
        if match[1] is None:
            # }} closes a {{ that stands before it; alone it is two braces, as at the end of nested JSON.
            paired = match[0] == "{{" or open_pairs > 0
            open_pairs += (1 if match[0] == "{{" else -1) if paired else 0
            literal += match[0][0] if paired else match[0]
        elif match[2]:
            raise ConfigError(
                f"task.template: write {{{match[1]}}} alone: {match[2]!r} would pick or format a part of it, and only whole "
                f"fields can be put in. {{{{ and }}}} are single braces"
            )
        else:
            pieces += [literal, match[1]]
            literal = ""
    return [*pieces, literal + text[end:]]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
