"""Where settings come from: flags, the environment (GRPO_SERVER_*) and a file.

A flag wins over the environment, the environment over the file, the file over the default.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from grpo_client.version import package_version
from pydantic_settings import BaseSettings, CliSettingsSource, InitSettingsSource, PydanticBaseSettingsSource

from grpo_server.config import ENV_PREFIX, SECRETS, ServerConfig
from grpo_server.config.file import read_config_file
from grpo_server.help_text import DESCRIPTION, EXAMPLES

# What the environment would otherwise ignore without a word.
OTHER_SPELLINGS: dict[str, str] = dict.fromkeys(
    ("constant_shape", "no_constant_shape"), "--mode invariant, or --mode fast"
)


def load_config(argv: Sequence[str]) -> ServerConfig:
    """Flags over environment over file over defaults.

    Raises pydantic.ValidationError for a bad value, ValueError for a setting that is spelled otherwise here, and SystemExit as
    argparse does for an unknown flag or --help.
    """

    class Sourced(ServerConfig):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            flags = _flags(settings_cls, argv)
            file = flags().get("config") or env_settings().get("config")
            sources = (flags, env_settings)
            if file is None:
                return sources
            written = read_config_file(Path(file))
            _refuse_other_spellings(written)
            return (*sources, InitSettingsSource(settings_cls, written))

    _refuse_other_spellings(arg.split("=", 1)[0].removeprefix("--").replace("-", "_") for arg in argv)
    _refuse_other_spellings(name.lower().removeprefix(ENV_PREFIX.lower()) for name in os.environ)

    return Sourced()  # pyright: ignore[reportCallIssue]  # every value comes from the sources


def _refuse_other_spellings(names: Iterable[str]) -> None:
    for name in names:
        if (told := OTHER_SPELLINGS.get(name)) is not None:
            raise ValueError(f"{name} is not a setting: use {told}")


# What `--help` shows in place of an annotation of ours.
_SHOWN = {
    "str": "TEXT",
    "int": "N",
    "float": "NUMBER",
    "Path": "PATH",
    "tuple[str,...]": "TEXT",
    "{str,tuple[str,...]}": "[NAME=]MODEL",
}


class _Flags(CliSettingsSource[Any]):
    """As the library has them; choices are shown as they are, and other values as what people type."""

    def _metavar_format(self, obj: Any) -> str:
        shown = super()._metavar_format(obj)
        return _SHOWN.get(shown, shown)


def _flags(settings: type[BaseSettings], argv: Sequence[str]) -> CliSettingsSource[Any]:
    parser = argparse.ArgumentParser(
        "grpo-server",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"grpo-server {package_version()}")
    flags = _Flags(settings, root_parser=parser, cli_parse_args=list(argv))
    if SECRETS & flags().keys():
        parser.error("keys do not go on the command line, where ps shows them: use a file, or the environment")
    return flags
