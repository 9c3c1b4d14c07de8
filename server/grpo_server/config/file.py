"""A file of settings or keys, YAML or TOML, as a mapping. Errors name file and line, and repeat nothing that is in it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


def read_config_file(path: Path) -> dict[str, Any]:
    """What the settings file says; an empty one says nothing. Raises ValueError, one sentence."""
    return read_mapping(path, "config")


def read_mapping(path: Path, setting: str) -> dict[str, Any]:
    """What a file says that this setting names. Raises ValueError, one sentence that begins with the setting."""
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise ValueError(f"{setting}: {path} ends in {path.suffix!r}; use a .yaml, .yml or .toml file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"{setting}: there is no file {path}") from error
    except OSError as error:
        raise ValueError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{setting}: {path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}"
        ) from None
    values = _toml(text, path, setting) if path.suffix == ".toml" else _yaml(text, path, setting)
    if values is None:
        return {}
    if not isinstance(values, dict):
        example = "settings, such as model: demo" if setting == "config" else "named entries"
        raise ValueError(f"{setting}: {path} must hold {example}, and not a {type(values).__name__}")
    return {str(name): value for name, value in values.items()}


class _Loader(yaml.SafeLoader):
    """YAML's own safe loader, which would take the last of two equal keys and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} is there twice", problem_mark=key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml(text: str, path: Path, setting: str) -> Any:
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # PyYAML repeats the name of an alias or a tag, which may be a key that begins with * or !.
        problem = re.sub(r"(alias|tag) ['\"].*['\"]", r"\1", error.problem or "unknown fault")
        raise ValueError(f"{setting}: {path} is not valid YAML{where}: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{setting}: {path} is not valid YAML: {type(error).__name__}") from None


def _toml(text: str, path: Path, setting: str) -> Any:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        where = re.search(r"\(at .*\)", str(error))
        raise ValueError(f"{setting}: {path} is not valid TOML{' ' + where[0] if where else ''}") from None
