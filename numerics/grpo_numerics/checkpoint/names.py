"""What the names of tensors tell: whether one that a model has no place for changes its log-probs, and why names do not fit.

Which tensors count is a rule, and a name that no rule knows counts. The rest is a guess, made only in the words of an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_TOLD = 3

# Derived values that older code saved with the weights, or that only a quantized cache reads: the model computes its own.
_DERIVED = re.compile(
    r"rotary\w*\.(inv_freq|cos_cached|sin_cached|\w*freqs?)$|(^|\.)(attn|attention|self_attn)\.(masked_)?bias$"
    r"|(^|\.)position_ids$|_extra_state$|(^|\.)num_batches_tracked$|(^|\.)(k|v|kv|q)_scale$"
)
# Parts beside a language model: other senses, other heads, drafts for speculative decoding. Its log-probs do not pass them.
_BESIDE = re.compile(
    r"vision|visual|vit\b|image|img|pixel|video|audio|speech|sound|whisper|talker|token2wav|code2wav|codec|tts|\bvq"
    r"|\bmm_|multi_?modal|projector|connector|resampler|perceiver|q_?former|aligner"
    r"|v_head|\bvalue|\bscore|reward|critic|classifier|regression|pooler|\bmtp|nextn|eagle|medusa|draft",
    re.IGNORECASE,
)
# What a wrapper puts into names, and which wrapper it is.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "_forward_module.": "Lightning",
}
_ADAPTED = re.compile(
    r"\.base_layer\.|\.lora_([AB]|embedding_\w|magnitude_vector)\b|\.modules_to_save\.|^base_model\.model\."
)
_PACKED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_packed|weight_scale\w*|weight_zero_point|absmax|quant_map|SCB|\w+_blocks)$"
)
_LAYER = re.compile(r"^(.*?\.)(\d+)\.")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")


def told(names: Iterable[str]) -> str:
    """The first few of many names, and how many more."""
    listed = sorted(names, key=_natural)
    more = f" and {len(listed) - _TOLD} more" if len(listed) > _TOLD else ""
    return ", ".join(listed[:_TOLD]) + more


def is_needed(name: str, *, quantized: bool = False) -> bool:
    """Whether a tensor of a checkpoint that its model has no place for may change the model's log-probs.

    Not: derived values, and whole parts beside the language model. Of quantized layers only weights and biases count: each
    format has companions of its own.
    """
    if _DERIVED.search(name) or (quantized and name.rpartition(".")[2] not in ("weight", "bias")):
        return False
    part = re.split(r"\.\d+(?:\.|$)", name)[0].split(".")[:3]
    return not _BESIDE.search(".".join(part))


def remedy(
    here: Collection[str], missing: Collection[str], unexpected: Collection[str], *, adapter: bool = False
) -> str:
    """What to do, as far as the names show it, else "". here: names of the model's tensors. adapter: they are of one."""
    for wrapper, whose in _WRAPPERS.items():
        if any(wrapper in name and name.replace(wrapper, "") in here for name in unexpected):
            return f"strip {wrapper!r} from the names, which {whose} puts there, and save again"
    if adapter:
        return "where peft itself loads it, merge it there (merge_and_unload), save that, and use what was saved"
    if any(_ADAPTED.search(name) for name in unexpected):
        return "it was saved with an adapter in it: merge that (peft's merge_and_unload) and save again"
    if any(_PACKED.search(name) for name in unexpected):
        return "its weights are quantized and config.json does not say how: restore its quantization_config"
    if prefix := _prefix(missing, unexpected):
        return f"strip {prefix!r} from the names, and save again"
    if missing and not unexpected and all(_HEAD.search(name) for name in missing):
        return "save it with its output layer, or set tie_word_embeddings: true if that is its embedding"
    return _layers(here, missing, unexpected)


def _prefix(missing: Collection[str], unexpected: Collection[str]) -> str:
    """What most missing names have too much at the front."""
    name = min(missing, key=_natural, default="")
    fronts = {u.removesuffix(name) for u in unexpected if name and u.endswith(f".{name}")}
    return next((f for f in sorted(fronts) if sum(f + n in unexpected for n in missing) * 2 > len(missing)), "")


def _layers(here: Collection[str], missing: Collection[str], unexpected: Collection[str]) -> str:
    """For whole layers too many or too few on one side."""
    theirs = _count((set(here) - set(missing)) | set(unexpected))
    for stack, count in _count(here).items():
        if (found := theirs.get(stack, 0)) != count:
            return f"config.json says {count} of {stack}*, and the checkpoint has {found}"
    return ""


def _count(names: Iterable[str]) -> dict[str, int]:
    """How many different numbers stand at the first numbered place of names, by what stands before it."""
    stacks: dict[str, set[int]] = {}
    for name in names:
        if found := _LAYER.match(name):
            stacks.setdefault(found[1], set()).add(int(found[2]))
    return {stack: len(numbers) for stack, numbers in stacks.items()}


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
