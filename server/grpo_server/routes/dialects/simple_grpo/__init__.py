"""simple_GRPO's reference server: its two routes, its frames, and the shelf between them."""
