"""The inspector: `pages` gives its files, the other modules what it asks beyond the API. Off with --no-ui.

A module of the second kind takes its router from `guard.api_router`, so that no browser of another site gets an answer.
"""
