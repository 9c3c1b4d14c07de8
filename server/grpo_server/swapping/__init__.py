"""Replacing the reference while it serves: its files are fetched in a process that can be ended, the next engine comes up
beside the one that serves, and what a restart must know is on disk before anybody is answered by it.

    swaps > fetching, state, sources > progress        imports go this way only
"""
