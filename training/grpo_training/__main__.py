"""`python -m grpo_training` is `grpo-train`."""

from grpo_training.cli import main

if __name__ == "__main__":
    main()
