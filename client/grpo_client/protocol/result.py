"""What comes back: the figures of every completion, who computed them, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from grpo_client import shown
from grpo_client.masking import Mask
from grpo_client.protocol.names import HIDDEN, FloatArray, IntArray, Normalizer, Status


class ReferenceInfo(BaseModel):
    """Who answered. `fingerprint` is a SHA-256 over weights, config and tokenizer; `version` counts swaps."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    fingerprint: str
    version: int
    dtype: str
    # exact: float32. invariant: narrower, the same bits in any batch. fast: no promise about bits.
    mode: Literal["exact", "invariant", "fast"]
    normalizer: Normalizer = "softmax"
    max_length: int
    vocab_size: int
    # How prompts are shared, found by the start-up probe: packed > cache > plain. Informative.
    tier: str | None = None
    # True only where the start-up probe showed that scores are bitwise independent of the batch.
    bitwise: bool | None = None
    # H, numbers in a hidden state: only where "hidden" may be asked for.
    hidden_size: int | None = Field(default=None, exclude_if=lambda value: value is None)
    # SHA-256 over its tokens and their ids, and how many there are, beyond which a vocabulary may be padded: in
    # GET /v1/reference alone.
    tokenizer_fingerprint: str | None = Field(default=None, exclude_if=lambda value: value is None)
    tokens: int | None = Field(default=None, exclude_if=lambda value: value is None)
    # The release of the program that answered, in GET /v1/reference alone: absent from the answers to scoring.
    server_version: str | None = Field(default=None, exclude_if=lambda value: value is None)


class Usage(BaseModel):
    """What the answer cost. computed_tokens counts each shared prompt once; *_ms are milliseconds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt_tokens: int = 0
    completion_tokens: int = 0
    computed_tokens: int = 0
    cached_sequences: int = 0
    queue_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class CompletionScores:
    """One completion's figures: views into the flat arrays of its `ScoreResult`. Shapes (C,) and (C, k)."""

    status: Status
    logprobs: FloatArray
    extras: Mapping[str, npt.NDArray[np.generic]]

    def __len__(self) -> int:
        """C, the number of tokens."""
        return len(self.logprobs)

    def __repr__(self) -> str:
        return shown.completion(self)


@dataclass(frozen=True, repr=False, eq=False)
class ScoreResult:
    """What came back.

    logprobs: (N,) fp32, nats, logprobs[t] = log p(completion[t] | prompt, completion[:t]).
    completion_mask: (N,) bool, False where nothing was asked: there log-probs and other figures are NaN, ids and ranks -1, and
    no status speaks of it. None: asked everywhere.
    completion_lengths: (S,), group_sizes: (K,), status: (S,) uint8 of `Status`, temperature: (K,) fp32.
    extras: see EXTRA_ARRAYS, each with first dimension N; "hidden" (N, H) uint16 is bfloat16 by its bits, see `hidden_states`.
    prompt_ids, completion_ids: the ids that were scored, when the server tokenized text; else None.
    """

    reference: ReferenceInfo
    normalizer: Normalizer
    temperature: FloatArray
    group_sizes: IntArray
    completion_lengths: IntArray
    logprobs: FloatArray
    status: npt.NDArray[np.uint8]
    extras: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=lambda: {})
    usage: Usage = field(default_factory=Usage)
    prompt_ids: tuple[IntArray, ...] | None = None
    completion_ids: tuple[IntArray, ...] | None = None
    completion_mask: Mask | None = None

    def __len__(self) -> int:
        """S, the number of completions."""
        return len(self.completion_lengths)

    def __iter__(self) -> Iterator[CompletionScores]:
        """Each completion's figures, as `completions` gives them."""
        return self.completions()

    @overload
    def __getitem__(self, at: SupportsIndex) -> CompletionScores: ...
    @overload
    def __getitem__(self, at: slice) -> list[CompletionScores]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> CompletionScores | list[CompletionScores]:
        """One completion's figures, counted over all groups, or those of a slice. Raises IndexError."""
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        place = range(len(self))[at]
        end = int(self.completion_lengths[: place + 1].sum(dtype=np.int64))
        return self._completion(place, end - int(self.completion_lengths[place]), end)

    def __repr__(self) -> str:
        return shown.result(self)

    def ragged(self) -> list[FloatArray]:
        """Log-probs as one (C,) view per completion, in the caller's order."""
        return np.split(self.logprobs, np.cumsum(self.completion_lengths)[:-1]) if len(self) else []

    def padded(self, fill: float = 0.0, length: int | None = None) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Log-probs right-padded to (S, length) with `fill`, and the (S, length) mask that is True on tokens that
        were asked.

        length: at least the longest completion (the default). Raises ValueError when a completion does not fit.
        """
        longest = int(self.completion_lengths.max(initial=0))
        width = longest if length is None else length
        if width < longest:
            raise ValueError(f"length={width} is shorter than the longest completion ({longest} tokens)")
        mask = np.arange(width)[None, :] < self.completion_lengths[:, None]
        if self.completion_mask is not None:
            mask[mask] = self.completion_mask
        out = np.full(mask.shape, fill, dtype=np.float32)
        out[mask] = self.logprobs if self.completion_mask is None else self.logprobs[self.completion_mask]
        return out, mask

    def hidden_states(self) -> FloatArray:
        """(N, H) what the model's head makes log-probs of, widened from bfloat16; NaN where nothing was asked. Raises KeyError
        unless "hidden" was asked for."""
        bits = self.extras[HIDDEN].astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)

    def completions(self) -> Iterator[CompletionScores]:
        """Each completion's figures, extras included."""
        end = 0
        for place, length in enumerate(self.completion_lengths.tolist()):
            start, end = end, end + length
            yield self._completion(place, start, end)

    def groups(self) -> Iterator[list[CompletionScores]]:
        """The completions of each group."""
        flat = self.completions()
        for size in self.group_sizes:
            yield [next(flat) for _ in range(int(size))]

    def _completion(self, place: int, start: int, end: int) -> CompletionScores:
        extras = {name: values[start:end] for name, values in self.extras.items()}
        return CompletionScores(Status(int(self.status[place])), self.logprobs[start:end], extras)
