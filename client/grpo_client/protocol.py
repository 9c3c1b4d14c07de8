"""The message that client and server share: what is asked, what comes back, and how each is shaped.

Values only: how they travel is in `wire_json` and `wire_tensors`; nothing here does I/O. All token arrays are flat
int32 vectors with lengths beside them, so that a request of ten thousand sequences is five arrays and not ten
thousand lists. Order is everywhere the caller's: group by group, completion by completion, token by token.

Shape letters: K groups, S completions over all groups, N completion tokens over all completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, SupportsIndex, overload

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from grpo_client import shown
from grpo_client.arguments import readers
from grpo_client.arguments.id_lists import check_counts, group_completions, id_vector, read_wanted_ids
from grpo_client.arguments.types import Completions, Prompts, WantedIds

Normalizer = Literal["softmax", "stablemax"]
Extra = Literal["entropy", "logsumexp", "rank"]
NORMALIZERS: tuple[Normalizer, ...] = ("softmax", "stablemax")
EXTRAS: tuple[Extra, ...] = ("entropy", "logsumexp", "rank")

MEDIA_JSON = "application/json"
MEDIA_TENSORS = "application/x-safetensors"
ROUTE_LOGPROBS = "/v1/logprobs"
ROUTE_REFERENCE = "/v1/reference"

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


class Status(IntEnum):
    """What became of one completion. Anything but OK means: do not use its numbers."""

    OK = 0
    NONFINITE = 1  # a log-prob is NaN or infinite: the row had no distribution, or the token has no mass


@dataclass(frozen=True, slots=True, repr=False)
class Group:
    """One prompt and its completions.

    prompt: (P,) int32, P >= 1. completions: each (C,) int32, C >= 0; an empty one is legal and scores to nothing.
    token_ids: None, or per completion (C, k) int32: the ids to score at each position beside the one that is there.
    """

    prompt: IntArray
    completions: tuple[IntArray, ...]
    temperature: float = 1.0
    token_ids: tuple[IntArray, ...] | None = None

    def __repr__(self) -> str:
        return shown.group(self)


@dataclass(frozen=True, slots=True, repr=False)
class ScoreRequest:
    """What is asked of the reference, whatever dialect it came in.

    groups: K of them, each with its own temperature (logits are divided by it before normalising).
    normalizer: what turns logits into probabilities. extras: which further figures to return for every completion token.
    top_k: how many best tokens to return a position. fingerprint: answer only if this is the reference.
    """

    groups: tuple[Group, ...]
    normalizer: Normalizer = "softmax"
    extras: frozenset[Extra] = frozenset()
    top_k: int = 0
    fingerprint: str | None = None

    @classmethod
    def of(
        cls,
        prompts: Prompts,
        completions: Completions,
        *,
        temperature: float | Sequence[float] = 1.0,
        normalizer: Normalizer = "softmax",
        extras: Sequence[Extra] = (),
        top_k: int = 0,
        token_ids: WantedIds | None = None,
        fingerprint: str | None = None,
    ) -> ScoreRequest:
        """Build a request from lists, tuples, arrays or tensors: `prompts[k]` with `completions[k][g]`.

        One completion a prompt may come without a list around it: `prompts[k]` with `completions[k]`; `token_ids[k]` then too.
        temperature: one, or one per group. Raises ProtocolError, which names the entry, for what is no list of ids.
        """
        asked = readers.rows(prompts, "prompts", "prompts, each a list of token ids")
        answers, flat = group_completions(completions)
        check_counts(len(asked), len(answers), flat=flat)
        temperatures = readers.read_temperatures(temperature, len(asked))
        vectors = [
            [id_vector(c, f"completions[{k}]" + ("" if flat else f"[{g}]")) for g, c in enumerate(group)]
            for k, group in enumerate(answers)
        ]
        wanted = [None] * len(asked) if token_ids is None else read_wanted_ids(token_ids, vectors, flat=flat)
        groups = tuple(
            Group(id_vector(prompt, f"prompts[{k}]"), tuple(vectors[k]), temperatures[k], wanted[k])
            for k, prompt in enumerate(asked)
        )
        return cls(
            groups,
            normalizer,
            readers.read_names(extras, "extras"),
            readers.read_count(top_k, "top_k"),
            fingerprint,
        )

    @property
    def group_sizes(self) -> IntArray:
        """(K,) completions per group."""
        return np.array([len(g.completions) for g in self.groups], dtype=np.int32)

    @property
    def completion_lengths(self) -> IntArray:
        """(S,) tokens per completion."""
        return np.array([len(c) for g in self.groups for c in g.completions], dtype=np.int32)

    def __repr__(self) -> str:
        return shown.request(self)


class ReferenceInfo(BaseModel):
    """Who answered. `fingerprint` is a SHA-256 over weights, config and tokenizer; `version` counts swaps."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    fingerprint: str
    version: int
    dtype: str
    mode: Literal["exact", "fast"]
    normalizer: Normalizer = "softmax"
    max_length: int
    vocab_size: int
    # How prompts are shared, found by the start-up probe: packed > cache > plain. Informative.
    tier: str | None = None
    # True only where the start-up probe showed that scores are bitwise independent of the batch.
    bitwise: bool | None = None
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


# Every per-token array that may come beside `logprobs`, with its dtype; (N,) unless noted.
EXTRA_ARRAYS: Mapping[str, type[np.generic]] = {
    "entropy": np.float32,  # nats
    "logsumexp": np.float32,  # of the temperature-scaled logits (of symlog of them under StableMax)
    "rank": np.int32,  # 0: no token has a larger log-prob
    "top_ids": np.int32,  # (N, top_k)
    "top_logprobs": np.float32,  # (N, top_k), best first
    "token_logprobs": np.float32,  # (N, k) for the asked token_ids
}


@dataclass(frozen=True, repr=False, eq=False)
class ScoreResult:
    """What came back.

    logprobs: (N,) fp32, nats, logprobs[t] = log p(completion[t] | prompt, completion[:t]).
    completion_lengths: (S,), group_sizes: (K,), status: (S,) uint8 of `Status`, temperature: (K,) fp32.
    extras: see EXTRA_ARRAYS, each with first dimension N.
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
        """Log-probs right-padded to (S, length) with `fill`, and the (S, length) mask that is True on real tokens.

        length: at least the longest completion (the default). Raises ValueError when a completion does not fit.
        """
        longest = int(self.completion_lengths.max(initial=0))
        width = longest if length is None else length
        if width < longest:
            raise ValueError(f"length={width} is shorter than the longest completion ({longest} tokens)")
        mask = np.arange(width)[None, :] < self.completion_lengths[:, None]
        out = np.full(mask.shape, fill, dtype=np.float32)
        out[mask] = self.logprobs
        return out, mask

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
