"""One reference for all replicas of a cluster: replaced on all of them or on none, and loaded by those that come later.

    coordinator: one for all, decides and remembers        member: one in each replica, does it there

What carries a word from one to the other is not known here; `grpo_server.ray` brings it.
"""
