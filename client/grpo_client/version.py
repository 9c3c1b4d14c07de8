"""Which release this is: one distribution, one number, whichever of its packages is asked."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "grpo-refserver"


def package_version() -> str:
    """Of the installed distribution; "unknown" where the sources run without having been installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
