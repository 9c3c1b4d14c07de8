"""The ways in which two programs give one conversation different prompts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from grpo_client.errors import NotFound, RequestRefused, ServerFailed
from grpo_client.findings.rescoring import Changed, Served
from grpo_client.findings.samples import Ints, Samples

_CONTENTS = ("0", "abc")  # of two conversations; what their prompts share is the template's


def prompt_changes(samples: Samples, served: Served) -> Iterator[tuple[str, Changed]]:
    """What the policy's prompt may be, in words, and how the file's becomes so."""
    yield "the policy's prompt has its first token twice", lambda ids: np.concatenate([ids[:1], ids])
    yield "the policy's prompt lacks its first token", lambda ids: ids[1:]
    yield "the policy's prompt lacks its last token", lambda ids: ids[:-1]
    yield "the policy's prompt has its last token twice", lambda ids: np.concatenate([ids, ids[-1:]])
    yield "the policy's prompt lacks its first turn (the system's)", _without_first_turn
    try:
        before, after, generation = _template(served)
    except (RequestRefused, NotFound, ServerFailed):  # no tokenizer there, or one without a template
        return
    if len(generation):
        yield "the policy's prompt lacks the generation prompt", lambda ids: _less_end(ids, generation)
        yield "the policy's prompt has a generation prompt", lambda ids: np.concatenate([ids, generation])
    yield "the policy's prompt has the system turn of the template", lambda ids: _with_first_turn(ids, before)
    prompts = [ids for ids in samples.prompts if ids is not None]
    if all(_inside(ids, before, after) is not None for ids in prompts):
        yield "the policy's prompt has no chat template", lambda ids: _kept(_inside(ids, before, after), ids)
    else:
        yield "the policy's prompt has the chat template", lambda ids: _templated(ids, served)


def _without_first_turn(ids: Ints) -> Ints:
    """From the second time on that the first token stands there: where turns begin alike, the second turn."""
    again = np.flatnonzero(ids[1:] == ids[:1])
    return ids[1 + int(again[0]) :] if len(again) else ids


def _with_first_turn(ids: Ints, before: Ints) -> Ints:
    """The template's beginning, where the prompt begins like what follows it there."""
    for k in range(1, len(before)):
        if np.array_equal(ids[: len(before) - k], before[k:]):
            return np.concatenate([before[:k], ids])
    return ids


def _template(served: Served) -> tuple[Ints, Ints, Ints]:
    """What the model's template puts before a user's words, after them, and, of the latter, as generation prompt."""
    one, two = (served.tokenize([{"role": "user", "content": text}]).astype(np.int64) for text in _CONTENTS)
    bare = served.tokenize([{"role": "user", "content": _CONTENTS[0]}], add_generation_prompt=False).astype(np.int64)
    short = min(len(one), len(two))
    differ = np.flatnonzero(one[:short] != two[:short])
    start = int(differ[0]) if len(differ) else short
    backwards = np.flatnonzero(one[::-1][:short] != two[::-1][:short])
    end = int(backwards[0]) if len(backwards) else 0
    generation = one[len(bare) :] if np.array_equal(one[: len(bare)], bare) else one[:0]
    return one[:start], one[len(one) - end :], generation


def _inside(ids: Ints, before: Ints, after: Ints) -> Ints | None:
    """What stands between the template's parts; None where they are not there."""
    room = len(ids) - len(before) - len(after)
    if (
        room < 0
        or not np.array_equal(ids[: len(before)], before)
        or not np.array_equal(ids[len(ids) - len(after) :], after)
    ):
        return None
    return ids[len(before) : len(before) + room]


def _less_end(ids: Ints, end: Ints) -> Ints:
    return ids[: len(ids) - len(end)] if np.array_equal(ids[len(ids) - len(end) :], end) else ids


def _templated(ids: Ints, served: Served) -> Ints:
    return served.tokenize([{"role": "user", "content": served.detokenize(ids)}]).astype(np.int64)


def _kept(changed: Ints | None, ids: Ints) -> Ints:
    return ids if changed is None else changed
