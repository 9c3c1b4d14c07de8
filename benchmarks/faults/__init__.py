"""A training run under faults; see `__main__`."""
