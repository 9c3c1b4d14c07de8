"""`grpo-train` and `python -m grpo_training`: the command, or the extra that it lacks."""

from __future__ import annotations

from grpo_client.extras import needs_extra


def main() -> None:
    with needs_extra("training"):
        from grpo_training import cli
    cli.main()


if __name__ == "__main__":
    main()
