"""What the documentation takes from the code: docs/openapi.json, and tables of settings and routes in docs/.

    python -m tools.write_docs            write them
    python -m tools.write_docs --check    change nothing; status 1, with the names, if a file is not what the code says

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. NAME is `routes`, `grpo-server`, or `grpo-train`
and a section of its configuration; the rows of a table of settings are the fields of the class.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from grpo_server.app import create_app
from grpo_server.config import SECRETS, ServerConfig
from grpo_server.config.sizes import AutoSize, Size
from grpo_training.config import TrainConfig
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OPENAPI = DOCS / "openapi.json"
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->\n)", re.DOTALL)
UNITS = {2**30: "GiB", 2**20: "MiB", 2**10: "KiB", 1: ""}
[SIZE], [AUTO_SIZE] = get_args(Size)[1:], get_args(AutoSize)[1:]  # what reads 256MiB as a number, and "auto"


def contents() -> dict[Path, str]:
    """Every file that is written here, and what belongs into it."""
    found = {OPENAPI: openapi_document()}
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if TABLE.search(text):
            found[page] = TABLE.sub(lambda m: f"{m[1]}\n{table(m[2])}\n{m[3]}", text)
    return found


def openapi_document() -> str:
    """As `/openapi.json` answers, with sorted keys."""
    return json.dumps(openapi(), indent=1, sort_keys=True) + "\n"


@cache
def openapi() -> dict[str, Any]:
    def no_engine() -> Any:
        raise AssertionError("the document needs no model")

    return create_app(ServerConfig.model_validate({"model": "demo"}), no_engine).openapi()


def table(name: str) -> str:
    """The table of one marker. Raises KeyError for a section that does not exist."""
    command, *path = name.split()
    if command == "routes":
        head, rows = ("method", "path", "what it does"), route_rows()
    elif command == "grpo-server":
        head, rows = ("flag", "values", "default", "meaning"), server_rows()
    else:
        section: type[BaseModel] = TrainConfig
        for part in ".".join(path).split("."):
            section = section_of(section.model_fields[part].annotation)
        head, rows = ("field", "values", "default", "meaning"), training_rows(section)
    return "\n".join([cells(*head), "|---" * len(head) + "|", *rows]) + "\n"


def route_rows() -> Iterator[str]:
    for path, methods in openapi()["paths"].items():
        for method, route in methods.items():
            first, _, _ = route.get("description", "").partition("\n\n")
            yield cells(f"`{method.upper()}`", f"`{path}`", first)


def server_rows() -> Iterator[str]:
    for name, field in ServerConfig.model_fields.items():
        if name not in SECRETS:
            yield row(f"--{name.replace('_', '-')}", field, {True: "on", False: "off"})


def training_rows(section: type[BaseModel]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield row(name, field, {True: "`true`", False: "`false`"})


def row(name: str, field: FieldInfo, booleans: Mapping[bool, str]) -> str:
    return cells(f"`{name}`", values(field), default(name, field, booleans), field.description or "")


def cells(*texts: str) -> str:
    return "| " + " | ".join(" ".join(text.split()).replace("|", "\\|") for text in texts) + " |"


def values(field: FieldInfo) -> str:
    """What may stand there: the choices, or a word for the kind of value."""
    kinds = [kind for kind in alternatives(field.annotation) if kind is not NoneType]
    if SIZE in (*field.metadata, *(part for kind in get_args(field.annotation) for part in metadata(kind))):
        return "size"
    if AUTO_SIZE in field.metadata:
        return "size, `auto`"
    return ", ".join(dict.fromkeys(kind_name(kind) for kind in kinds))


def kind_name(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if origin in (tuple, list):
        inner = [one for one in get_args(kind) if one is not Ellipsis]
        return f"{len(inner)} numbers" if inner[0] is float else "list"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "section"
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return "path"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    return {bool: "yes or no", int: "integer", float: "number", str: "text", SecretStr: "text"}[kind]


def default(name: str, field: FieldInfo, booleans: Mapping[bool, str]) -> str:
    if field.is_required():
        return "needed"
    if AUTO_SIZE in field.metadata:
        return "`auto`"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, bool):
        return booleans[value]
    if value is None or value in ("", (), {}) or isinstance(value, BaseModel):
        return ""
    if isinstance(value, int) and name.endswith("-bytes"):
        unit = next(unit for unit in UNITS if value % unit == 0)
        return f"{value // unit} {UNITS[unit]}".strip()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value)
    return f"{value:g}" if isinstance(value, float) else f"`{value}`"


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone; what `Annotated` adds is left out."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for one in get_args(annotation) for kind in alternatives(one))
    return alternatives(get_args(annotation)[0]) if metadata(annotation) else (annotation,)


def metadata(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__metadata__", ())


def section_of(annotation: Any) -> type[BaseModel]:
    """The section that a field is, or that its values are where it holds several by name."""
    kinds = [of for kind in alternatives(annotation) for of in (kind, *get_args(kind))]
    return next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))


def main(argv: list[str]) -> int:
    stale = [path for path, text in contents().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    if "--check" in argv:
        if stale:
            sys.stderr.write(f"not what the code says: {names}; run make generate\n")
        return 1 if stale else 0
    for path, text in contents().items():
        path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"written: {names or 'nothing had changed'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
