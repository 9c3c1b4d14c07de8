"""`python -m grpo_client`: the command `grpo-client`."""

from grpo_client.cli import main

if __name__ == "__main__":
    main()
