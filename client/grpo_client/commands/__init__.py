"""What the commands of `grpo-client` do, and what a terminal shows of it. The command line itself is `grpo_client.cli`."""
