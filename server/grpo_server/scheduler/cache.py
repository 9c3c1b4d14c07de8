"""Results that were computed before: least recently used out first, bounded in bytes.

A frozen model is a pure function, so (fingerprint, prompt, completion, temperature, normalizer, what was asked) names
a result for ever. Entries are per completion: a later request may mix old and new ones.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from grpo_client.protocol import CompletionScores, ScoreRequest

# What an entry weighs beside its arrays: key, dictionary slot, array headers (measured with sys.getsizeof, rounded up).
ENTRY_OVERHEAD_BYTES = 512


def content_keys(request: ScoreRequest) -> list[bytes]:
    """(S,) keys, one per completion: BLAKE2b over everything that the result depends on but the reference.

    Lengths go in before contents, so that no two different inputs give the same stream of bytes.
    """
    common = hashlib.blake2b(digest_size=32)
    asked = "\x00".join([request.normalizer, request.top_dtype, *sorted(request.extras)]).encode()
    common.update(struct.pack("<QQ", len(asked), request.top_k))
    common.update(asked)
    keys: list[bytes] = []
    for group in request.groups:
        of_group = common.copy()
        of_group.update(struct.pack("<dQ", group.temperature, len(group.prompt)))
        of_group.update(_bytes(group.prompt))
        for g, completion in enumerate(group.completions):
            h = of_group.copy()
            h.update(struct.pack("<Q", len(completion)))
            h.update(_bytes(completion))
            if group.token_ids is not None:
                h.update(struct.pack("<QQ", *group.token_ids[g].shape))
                h.update(_bytes(group.token_ids[g]))
            if group.completion_mask is not None and not group.completion_mask[g].all():
                h.update(b"mask")
                h.update(group.completion_mask[g].tobytes())
            keys.append(h.digest())
    return keys


def result_keys(contents: Sequence[bytes], fingerprint: str) -> list[bytes]:
    """The keys of `content_keys` for the answers of this reference."""
    of_reference = hashlib.blake2b(fingerprint.encode(), digest_size=32).digest()
    return [of_reference + content for content in contents]


def request_key(contents: Sequence[bytes]) -> bytes:
    """Names a request by its content, whichever reference answers it."""
    return hashlib.blake2b(b"".join(contents), digest_size=32).digest()


def _bytes(ids: npt.NDArray[np.int32]) -> bytes:
    return ids.astype("<i4", copy=False).tobytes()


def entry_bytes(scores: CompletionScores) -> int:
    """What keeping these costs."""
    return scores.logprobs.nbytes + sum(a.nbytes for a in scores.extras.values()) + ENTRY_OVERHEAD_BYTES


def _detached(scores: CompletionScores) -> CompletionScores:
    """A copy that does not keep the batch's large arrays alive through its views."""
    extras = {name: values.copy() for name, values in scores.extras.items()}
    return CompletionScores(scores.status, scores.logprobs.copy(), extras)


class ResultCache:
    """Least recently used out first. max_bytes 0 turns it off: nothing is kept and nothing is found."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, CompletionScores] = OrderedDict()
        self._bytes = 0

    @property
    def enabled(self) -> bool:
        return self._max_bytes > 0

    @property
    def nbytes(self) -> int:
        """Bytes held now, overhead included; never more than max_bytes."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> CompletionScores | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, scores: CompletionScores) -> None:
        """Keep a copy of the scores, unless they alone are larger than the whole cache."""
        nbytes = entry_bytes(scores)
        if nbytes > self._max_bytes:
            return
        known = self._entries.pop(key, None)
        if known is not None:
            self._bytes -= entry_bytes(known)
        self._entries[key] = _detached(scores)
        self._bytes += nbytes
        while self._bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= entry_bytes(oldest)
