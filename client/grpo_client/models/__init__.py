"""Where a model's files are and what is wrong with them, for server and training alike. Reads no weights, needs no torch."""
