"""Benchmarks: what the service costs beside its peers and beside the matrix products alone. Start with `benchmarks.run`."""
