"""Whether a score keeps its bits alone, in company, in another order: claimed only where the loaded model shows it.

Three questions, from the cheap to the dear, each at the size of a full batch: do the rows of each product keep their bits at
every number of rows that a batch can have (`products`), do those of the head, and do the scores of the probe's groups behind,
before and among others that fill the batch? What fails the first two is replaced by something of a fixed shape.

MKL's strict reproducible mode is known to keep a row's bits at any height (seen on Intel and AMD, at every width of vectors):
there some of the heights are tried, and a batch as large as a second or so computes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from grpo_client.protocol import FloatArray
from grpo_numerics import HeadSpec, default_tile
from grpo_numerics.head.figures import WANTS
from grpo_numerics.head.tiles import row_multiple
from torch import nn

from .anatomy import Anatomy
from .config import TIERS, Mode, Tier
from .contract import Piece
from .experts import settle_experts
from .head_pass import Head, in_whole_blocks
from .heights import Heights, spread
from .probe import Score, full_batch, later_turns
from .products import products_of, settle

log = logging.getLogger(__name__)

# What a batch of the probe may cost where MKL's mode is proof already.
_FLOPS_WHERE_TRUSTED = 1e11


@dataclass(frozen=True, slots=True)
class Ground:
    """What a promise about bits stands on. heights: rows a stream may have; None where nothing is promised. head: the one that
    keeps bits. obstacles: by tier, why none can be promised. trusted: MKL in strict mode. most: tokens of a full batch."""

    heights: Heights | None
    head: Head
    obstacles: Mapping[Tier, str]
    trusted: bool
    most: int


def prepare_ground(mode: Mode, parts: Anatomy, head: Head, most: int) -> Ground:
    """Make the model's products and its head keep the bits of their rows in batches of up to `most` tokens."""
    if mode == "fast":
        return Ground(None, head, {}, False, most)
    trusted = _strict_mkl(parts)
    threads = torch.get_num_threads() if parts.device.type == "cpu" else 1
    heights = Heights(parts.widths, threads, coarse=not trusted)
    obstacles: dict[Tier, str] = {"cache": "a product has as many rows as the completions of its group"}
    settled, obstacle = settle_experts(parts.modules, trusted=trusted)
    others = products_of(module for module in parts.modules if module not in settled)
    obstacle = obstacle or settle(others, heights.reachable(most), trusted=trusted)
    if obstacle is not None:
        obstacles["packed"] = obstacle  # alone, a sequence has its own number of rows every time
    if not _head_keeps_bits(head, parts, trusted):
        head = in_whole_blocks(head)
        if not _head_keeps_bits(head, parts, trusted):
            obstacles = dict.fromkeys(TIERS, "the head changes the bits of a row with the number of rows")
    return Ground(heights, head, obstacles, trusted, most)


def keeps_bits(
    ground: Ground,
    tier: Tier,
    parts: Anatomy,
    score: Score,
    pieces: Sequence[Piece],
    together: Sequence[FloatArray],
    max_length: int,
    *,
    shares: bool,
) -> bool:
    """Whether `bitwise` may be claimed for what `score` computes in this tier. together: log-probs that it gave for the pieces
    as one batch. shares: later turns of the pieces join the crowd, which cut their sequences elsewhere."""
    if ground.heights is None:
        return False
    if (obstacle := ground.obstacles.get(tier)) is None:
        most = most_tried(ground, parts)
        turns = later_turns(pieces, max_length) if shares else []
        crowd = turns + full_batch(parts.vocab_size, max_length, most - sum(p.tokens for p in (*pieces, *turns)))
        if same_bits(score, pieces, together, crowd, permuted=not ground.trusted):
            return True
        obstacle = "scores changed in another batch"
    log.warning(
        "scores of this model depend on the batch here%s (%s)",
        ", where turns are shared" if shares else ": `bitwise` is not claimed",
        obstacle,
    )
    return False


def most_tried(ground: Ground, parts: Anatomy) -> int:
    """Tokens of the batch in which scores are tried."""
    if not ground.trusted:
        return ground.most
    return min(ground.most, int(_FLOPS_WHERE_TRUSTED / (2 * parts.parameters)))


def _strict_mkl(parts: Anatomy) -> bool:
    return (
        parts.device.type == "cpu"
        and parts.weight.dtype == torch.float32
        and _multiplied_by_mkl(parts.modules)
        and torch.backends.mkl.is_available()
        and os.environ.get("MKL_CBWR", "").endswith(",STRICT")
    )


def _multiplied_by_mkl(modules: Sequence[nn.Module]) -> bool:
    """Whether every matrix of the layers is float32; a quantised one is multiplied by a package of its own."""
    matrices = [p for m in modules for p in m.parameters(recurse=False) if p.dim() > 1]
    buffers = [b for m in modules for b in m.buffers(recurse=False) if b.dim() > 1]
    packed = [b for b in buffers if not b.is_floating_point() and b.dtype != torch.bool]
    return not packed and all(p.dtype == torch.float32 for p in matrices)


@torch.inference_mode()
def _head_keeps_bits(head: Head, parts: Anatomy, trusted: bool) -> bool:
    """Whether every figure of a row has the same bits in a block of every height, over one tile of the vocabulary."""
    tile = default_tile(parts.weight.shape[1])
    step = row_multiple(parts.weight.device)
    heights = list(range(step, tile.rows + 1, step))
    weight = parts.weight[: tile.vocab].contiguous()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(heights[-1], weight.shape[1], generator=generator).to(weight)
    targets = torch.randint(len(weight), (heights[-1],), generator=generator).to(weight.device)

    def figures(height: int) -> list[torch.Tensor]:
        scores = head(
            rows[:height],
            weight,
            targets[:height],
            spec=HeadSpec(None, parts.spec.logit_scale, parts.spec.softcap),
            temperature=torch.full((height,), 0.9, device=weight.device),
            normalizer="softmax",
            want=WANTS,
            top_k=4,
            token_ids=None,
        )
        told = (scores.logprobs, scores.entropy, scores.logsumexp, scores.top_logprobs, scores.top_tail)
        return [figure for figure in told if figure is not None]

    whole = figures(heights[-1])
    tried = spread(heights) if trusted else heights
    return all(
        torch.equal(part, of_whole[:height])
        for height in tried
        for part, of_whole in zip(figures(height), whole, strict=True)
    )


def same_bits(
    score: Score,
    pieces: Sequence[Piece],
    together: Sequence[FloatArray],
    crowd: Sequence[Piece],
    *,
    permuted: bool,
) -> bool:
    """Whether scores keep their bits behind and among a crowd that fills the batch, and each group's last completion alone.

    permuted: also in a second full batch, in an order of no design.
    """
    numbered = list(enumerate(pieces))
    strangers = [(-1, piece) for piece in crowd]
    batches = [[*strangers, *reversed(numbered)]]
    if permuted:
        mixed = [*numbered, *strangers]
        order = np.random.default_rng(len(mixed)).permutation(len(mixed))
        batches.append([mixed[i] for i in order])
    for batch in batches:
        for (number, _), scores in zip(batch, score([piece for _, piece in batch]), strict=True):
            if number >= 0 and not np.array_equal(scores.logprobs, together[number]):
                return False
    for piece, whole in zip(pieces, together, strict=True):
        last = next(c for c in reversed(piece.completions) if len(c))
        [alone] = score([Piece(piece.prompt, (last,), piece.temperature)])
        end = len(whole) if len(piece.completions[-1]) else sum(len(c) for c in piece.completions)
        if not np.array_equal(whole[end - len(last) : end], alone.logprobs):
            return False
    return True
