"""How many rows a packed stream may have: few enough counts that each can be tried with every product of the model at load.

Where products keep a row's bits at any height (MKL in strict mode) rows grow by the smallest step that elementwise loops
allow. Elsewhere the step grows with the stream, to a thirty-second of it: a batch is at most 3 % padding, and a limit of 32,768
tokens leaves some two hundred counts to try.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from grpo_numerics.alignment import row_block, stream_rows

_FINEST = 32  # steps to an octave, at the least


@dataclass(frozen=True)
class Heights:
    """widths, threads: as `aligned_rows` has them. coarse: let the step grow."""

    widths: Collection[int]
    threads: int
    coarse: bool

    def step(self, tokens: int) -> int:
        """The stream of so many tokens is filled up to a multiple of this."""
        block = row_block(self.threads)
        if not self.coarse or tokens < _FINEST * block:
            return block
        return block * (1 << (tokens // (_FINEST * block)).bit_length() - 1)

    def of(self, tokens: int) -> int:
        """Rows of the stream that holds so many tokens."""
        return stream_rows(tokens, self.step(tokens), self.widths, self.threads)

    def part(self, tokens: int) -> int:
        """Rows of a product over the part of a stream that holds so many tokens, and some of what is behind it."""
        step = self.step(tokens)
        return -(-tokens // step) * step

    def parts(self, most: int) -> list[int]:
        """Every count of rows that a part of a stream of up to `most` tokens can have, ascending."""
        return sorted({self.part(tokens) for tokens in range(1, most + 1)})

    def reachable(self, most: int) -> list[int]:
        """Every count of rows that a stream of up to `most` tokens can have, ascending."""
        block = row_block(self.threads)  # steps change only at its multiples
        return sorted({self.of(min(tokens, most)) for tokens in range(block, most + block, block)})


def spread(heights: Sequence[int], most: int = 12) -> list[int]:
    """Some of these ascending counts, the smallest and the largest among them, dense where they are small."""
    if len(heights) <= most:
        return list(heights)
    ratio = (len(heights) - 1) ** (1 / (most - 1))
    picked = {0, len(heights) - 1, *(round(ratio**i) for i in range(most))}
    return [heights[i] for i in sorted(picked)]
