"""`grpo-train` and `python -m grpo_training`: the command, or the extra that it lacks."""

from __future__ import annotations

import os

from grpo_client.extras import needs_extra


def main() -> None:
    # Read once, when torch is imported. A thread that spins while it waits takes the core from the reference server that
    # works beside the trainer: steps take several times as long where the two share a machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with needs_extra("training", "grpo-train"):
        from grpo_training import cli
    cli.main()


if __name__ == "__main__":
    main()
