"""How much work a request is to those who only look it over: what is large does that beside the event loop."""

from __future__ import annotations

from grpo_client.protocol import ScoreRequest

# In ids. A completion costs Python as much as NumPy needs for some hundred ids; this much is looked over in a few milliseconds.
LARGE = 2**17
PER_COMPLETION = 256


def is_large(request: ScoreRequest) -> bool:
    """Whether checking, naming and cutting the request takes longer than an event loop should be held. Cheap itself."""
    weight = 0
    for group in request.groups:
        weight += PER_COMPLETION * (1 + len(group.completions)) + len(group.prompt)
        if weight > LARGE:
            return True
        weight += sum(map(len, group.completions)) + sum(ids.size for ids in group.token_ids or ())
    return weight > LARGE
