"""Each connection is an open file, and many systems allow a process 1024 of those unless it asks for more."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger(__name__)

# For everything else that a server has open: weights, libraries, logs.
OTHER_FILES = 256


def allow_connections(connections: int) -> None:
    """Raise this process's own limit, as far as the system lets it; a line in the log where that is not far enough."""
    if sys.platform == "win32":
        return  # which has no such limit
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < wanted:
        logger.warning(
            "the system allows %d open files and --max-connections %d needs %d; raise ulimit -n, or lower it",
            possible,
            connections,
            wanted,
        )
