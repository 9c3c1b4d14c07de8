"""How a run's settings are read: YAML, corrections from the command line, and errors that say where and what was meant.

No error repeats a line of the file or a value that was given: it may be a key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from .errors import ConfigError
from .run import TrainConfig


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, values: Mapping[str, object] | None = None
) -> TrainConfig:
    """Read YAML, apply `section.field=value` overrides (in YAML's own notation), then `values`, check everything.

    values: by `section.field`, taken as they are. Raises ConfigError, naming every field that is wrong.
    """
    settings = _sections(Path(path))
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"\s*[^\s.:=]+(\.[^\s.:=]+)*\s*", name):
            shown = re.match(r"[\w.]*", override)
            raise ConfigError(
                f"--set {shown[0] if shown else ''}: write section.field=value, such as optimizer.lr=1e-5"
            )
        _put(settings, name.strip(), _parsed(text, f"--set {name.strip()}: the value"))
    for name, value in (values or {}).items():
        _put(settings, name, value)
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from error


def _sections(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration file at {path}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as a configuration file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from error
    values = _parsed(text, str(path))
    if values is None:
        raise ConfigError(f"{path} is empty: it must hold sections (model:, task:, ...)")
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold sections (model:, task:, ...), not a {type(values).__name__}")
    # A heading under which everything has been commented out means the defaults.
    return {name: section for name, section in values.items() if section is not None}


def _put(values: dict[str, Any], name: str, value: object) -> None:
    """Set one `a.b.c` in nested dictionaries."""
    *path, field = name.split(".")
    for key in path:
        inner = values.get(key)
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{name}: {key} is a single value and has no field {field}")
        values = inner
    values[field] = value


class _Loader(yaml.SafeLoader):
    """YAML's own safe loader, which would take the last of two equal keys and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key} is there twice", problem_mark=key_node.start_mark
                )
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)


def _parsed(text: str, source: str) -> Any:
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # PyYAML repeats the name of an alias or a tag, which may be a key that begins with * or !.
        problem = re.sub(r"(alias|tag) ['\"].*['\"]", r"\1", error.problem or "unknown fault")
        hint = "; indent with spaces" if r"'\t'" in problem else ""
        raise ConfigError(f"{source} is not valid YAML{where}: {problem}{hint}") from None  # its words quote the line
    except yaml.YAMLError as error:
        place = getattr(error, "position", None)
        raise ConfigError(f"{source} is not valid YAML: a character is not allowed, position {place}") from error
    except (ValueError, RecursionError) as error:  # a date that does not exist; a thousand brackets
        raise ConfigError(f"{source} is not valid YAML: {type(error).__name__}") from error


def _explain(error: ValidationError) -> Iterator[str]:
    """One line for each fault: the field's path, what is wrong, and for an unknown field the nearest known one."""
    for fault in error.errors(include_input=False):
        where = ".".join(str(part) for part in fault["loc"]) or "configuration"
        if fault["type"] == "extra_forbidden":
            known = _fields_at(fault["loc"][:-1])
            near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            yield f"{where}: there is no such field; {hint}"
        elif fault["type"] == "string_type":
            yield f"{where}: {fault['msg']}; put it in quotes"
        else:
            yield f"{where}: {fault['msg']}"


def _fields_at(location: Sequence[int | str]) -> list[str]:
    section: type[BaseModel] = TrainConfig
    for key in location:
        if str(key) not in section.model_fields:
            continue  # a name that the user chose, as in eval.tasks
        annotation = section.model_fields[str(key)].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
