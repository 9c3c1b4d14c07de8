"""Completions: who samples them, and their log-probs under policy and reference.

rollout           groups sampled from the policy        sampling       policy or server, as configured
policy, forward   log-probs with gradient               openai, wire   a rollout server, I/O and messages
reference         log-probs from the reference server   weight_sync    how that server gets the weights
"""
