"""Print what an extra of this project needs, without the project itself: python dependencies.py pyproject.toml server.

The image installs these before it copies the code, so that a change of the code does not install them again.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(project: dict, extra: str) -> list[str]:
    """The base requirements and the extra's own, with extras that it takes from this same project followed."""
    found: list[str] = list(project["dependencies"])
    for line in project["optional-dependencies"][extra]:
        own = re.fullmatch(rf"{re.escape(project['name'])}\[(.+)\]", line)
        if own is None:
            found.append(line)
        else:
            for other in own[1].split(","):
                found += requirements(project, other.strip())
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    pyproject, extra = sys.argv[1:]
    sys.stdout.write("\n".join(requirements(tomllib.loads(Path(pyproject).read_text())["project"], extra)) + "\n")
