"""`grpo-server` and `python -m grpo_server`: the command, or the extra that it lacks."""

from __future__ import annotations

import sys

from grpo_client.extras import needs_extra


def main() -> int:
    with needs_extra("server", "grpo-server"):
        from grpo_server import cli
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
