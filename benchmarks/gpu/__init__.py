"""What a GPU makes of it, proved in under nine minutes: `python -m benchmarks.gpu`, see `__main__`."""
