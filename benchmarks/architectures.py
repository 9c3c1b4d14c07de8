"""Every language model of the installed transformers, those that see as well, built tiny: which tier serves it, how exactly,
and whether it keeps its bits.

    python -m benchmarks.architectures                    all of them, some ten minutes on one core
    python -m benchmarks.architectures gemma2 qwen3_next
    python -m benchmarks.architectures --markdown docs/results/architectures.md

One small config for all: where an architecture needs other figures than these, no model can be built, or its own forward
fails, and the line says so. What it shows is that nothing that is served is wrong.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_server.engine import environment

environment.set_environment("exact")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from grpo_server.engine import EngineConfig, Piece  # noqa: E402
from grpo_server.engine.engine import TorchEngine  # noqa: E402
from grpo_server.engine.loading import Loaded  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel  # noqa: E402
from transformers.models.auto.modeling_auto import (  # noqa: E402
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

VOCAB = 257
SMALL = dict(
    vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
EXPERTS = dict(
    num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_group=1,
    topk_group=1,
)  # fmt: skip
# Of layers that carry a state, plainly computed chunk by chunk: the cost grows with the square of a chunk.
STATES = dict(
    chunk_size=16, mamba_chunk_size=16, mamba_d_state=16, ssm_state_size=16, state_size=16, mamba_d_head=16, mamba_head_dim=16,
    mamba_headdim=16, mamba_n_heads=8, mamba_num_heads=8, n_mamba_heads=8, mamba_d_ssm=128, linear_num_heads=4,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
)  # fmt: skip
# Of attention whose keys and values are kept as a product of two narrow matrices: each head has its own.
LATENT = dict(
    q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, num_key_value_heads=4
)  # fmt: skip
# Of the eye of a model that sees as well; it has nothing to do here but to be there.
EYE = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, depth=1,
    num_heads=2, out_hidden_size=64, embed_dim=32, mlp_ratio=1.0,
)  # fmt: skip
# Parts that the common config does not reach keep their full size: vision towers, embeddings for each layer.
MAX_PARAMETERS = 20_000_000
# Two fp32 forwards that sum in different order.
TOLERANCE = 5e-4


class NotBuilt(Exception):
    """The common config does not fit this architecture."""


def tiny(kind: str) -> PreTrainedModel:
    """Random weights, wide enough that a wrong mask would show. Raises NotBuilt."""
    torch.manual_seed(0)
    try:
        config, factory = small_config(kind)
        with torch.device("meta"):
            size = sum(p.numel() for p in factory.from_config(config).parameters())
        if size > MAX_PARAMETERS:
            raise NotBuilt(f"{size / 1e6:.0f} million parameters")
        model = factory.from_config(config)
    except NotBuilt:
        raise
    except Exception as error:  # each architecture refuses a config that does not fit in its own way
        raise NotBuilt(f"{type(error).__name__}: {error}") from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0 if "embed" in name else 4.0)
    return model.eval().requires_grad_(False)


def small_text(config: type) -> dict[str, Any]:
    """The common figures for a text model with this class of config."""
    return {**SMALL, **EXPERTS, **STATES, **(LATENT if hasattr(config, "kv_lora_rank") else {})}


def small_config(kind: str) -> tuple[Any, Any]:
    """The common config for this architecture, and the class that builds it; of a model that sees, text and vision apart."""
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return CONFIG_MAPPING[kind](**small_text(CONFIG_MAPPING[kind])), AutoModelForCausalLM
    plain = CONFIG_MAPPING[kind]()
    text, eye = plain.get_text_config(decoder=True), getattr(plain, "vision_config", None)
    parts: dict[str, Any] = {"text_config": {"model_type": text.model_type, **small_text(type(text))}}
    if "mrope_section" in str(getattr(text, "rope_parameters", None)) or kind.startswith("qwen2"):
        parts["text_config"]["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 3, 3],
        }
    if eye is not None:
        known = eye.to_dict()
        # some count a ratio in whole numbers, and take no other
        small = {n: int(v) if isinstance(known[n], int) else v for n, v in EYE.items() if n in known}
        parts["vision_config"] = {"model_type": eye.model_type, **small}
    return CONFIG_MAPPING[kind](**parts), AutoModelForImageTextToText


def questions() -> list[Piece]:
    """Two groups, ragged, one completion of a single token."""
    rng = np.random.default_rng(3)

    def tokens(n: int) -> np.ndarray:
        return rng.integers(3, VOCAB, n, dtype=np.int32)

    return [Piece(tokens(40), tuple(tokens(n) for n in (7, 1, 23)), 1.0), Piece(tokens(20), (tokens(31),), 1.0)]


@torch.no_grad()
def by_itself(model: PreTrainedModel, piece: Piece) -> np.ndarray:
    """(N,) by the model itself, sequence by sequence. Raises NotBuilt when its own forward fails."""
    rows: list[np.ndarray] = []
    for completion in piece.completions:
        ids = torch.tensor(np.concatenate([piece.prompt, completion]))[None].long()
        try:
            logits = model(input_ids=ids, use_cache=False).logits[0, len(piece.prompt) - 1 : -1].double()
        except Exception as error:  # likewise
            raise NotBuilt(f"its own forward fails: {type(error).__name__}: {error}") from error
        rows.append(torch.log_softmax(logits, -1).gather(1, ids[0, len(piece.prompt) :, None])[:, 0].numpy())
    return np.concatenate(rows)


def outcome(kind: str) -> tuple[str, str, str]:
    """(tier, bitwise, largest |difference| in nats), or why there are none."""
    try:
        model = tiny(kind)
        pieces = questions()
        truth = [by_itself(model, piece) for piece in pieces]
    except NotBuilt as error:
        return "not built", "", str(error)
    try:
        engine = TorchEngine(EngineConfig(model=kind, mode="exact"), Loaded(model, None, None))
    except (ValueError, RuntimeError, AssertionError) as error:
        return "refused", "", str(error).removeprefix("model: ").partition("; use another")[0]
    answers = engine.compute(engine.prepare(pieces)).pieces
    worst = max(np.abs(by_model - a.logprobs).max() for by_model, a in zip(truth, answers, strict=True))
    verdict = "" if worst <= TOLERANCE else " WRONG"
    return str(engine.info.tier), "yes" if engine.info.bitwise else "no", f"{worst:.1e}{verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})
    parser.add_argument("kinds", nargs="*", metavar="ARCHITECTURE", help="as transformers calls it; default: all")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    asked = parser.parse_args()
    kinds = asked.kinds or known
    if unknown := sorted(set(kinds) - set(known)):
        parser.error(f"transformers has no language model called {', '.join(unknown)}")
    warnings.filterwarnings("ignore")  # of the architectures' own making
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    console = Console()
    rows: list[tuple[str, str, str, str]] = []
    for kind in track(kinds, description="architectures", console=console):
        tier, bitwise, difference = outcome(kind)
        rows.append((kind, tier, bitwise, " ".join(difference.split())[:120]))
        console.print(f"{kind:28} {tier:10} {bitwise:4} {rows[-1][3]}", highlight=False)
    console.print(dict(Counter(row[1] for row in rows)))
    if asked.markdown is not None:
        asked.markdown.write_text(as_markdown(rows), encoding="utf-8")


def as_markdown(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """What is served, as a table, and what was not built with the common config, in one line: that says nothing about it."""
    built = [row for row in rows if row[1] != "not built"]
    left = [row[0] for row in rows if row[1] == "not built"]
    tier = "../numerics.md#how-it-is-checked-on-your-model-at-every-start"
    title = (
        f"# Architectures\n\nEvery language model of transformers {transformers.__version__}, built tiny with random weights, "
        f"in exact mode on a CPU: which\n[tier]({tier}) serves it, whether\nits scores keep their bits, and the largest "
        "difference from the model's own forward. Written by\n"
        "`python -m benchmarks.architectures --markdown docs/results/architectures.md`.\n\n"
        "What is refused, encoders for the most part, has no way of scoring that reproduces its own forward with this config.\n"
    )
    lines = [title, "| architecture | tier | bitwise | largest difference in nats, or why not |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in built]
    return "\n".join([*lines, "", f"Not built from the common config: {', '.join(left) or 'none'}.", ""])


if __name__ == "__main__":
    main()
