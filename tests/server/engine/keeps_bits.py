"""Score random batch compositions and count the completions whose bits differ from those they have alone.

    python keeps_bits.py THREADS TRIALS MODE DTYPE MODEL      prints {"bitwise", "tier", "differing", "everything"}

A process of its own, because MKL and torch choose their kernels once: it sets the environment before torch is imported, as
`grpo-server` does, and leaves what is set already.
"""

import hashlib
import json
import sys

from grpo_server.engine import environment

THREADS, TRIALS, MODE, DTYPE, MODEL = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
environment.set_environment(MODE, threads=THREADS)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from grpo_server.engine import EngineConfig, Piece  # noqa: E402
from grpo_server.engine.engine import TorchEngine  # noqa: E402
from grpo_server.engine.loading import Loaded  # noqa: E402
from transformers import CONFIG_MAPPING, AutoModelForCausalLM  # noqa: E402

SIZES = dict(
    vocab_size=1021, hidden_size=96, intermediate_size=352, num_hidden_layers=2, num_attention_heads=3,
    num_key_value_heads=1, head_dim=32, max_position_embeddings=512,
)  # fmt: skip
MODELS = {
    "llama": SIZES,
    # soft-capped scores, which are computed without flash attention; tanh-GELU; a window; soft-capped logits
    "gemma2": SIZES | dict(sliding_window=40, query_pre_attn_scalar=32),
    "qwen3_moe": SIZES | dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=88, norm_topk_prob=True),
    "gpt2": dict(vocab_size=1021, n_embd=96, n_layer=2, n_head=3, n_positions=512),
}


def engine():
    torch.set_num_threads(THREADS)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[MODEL](**MODELS[MODEL]))
    model = model.eval().requires_grad_(False).to(getattr(torch, DTYPE))
    # room for the largest batch below
    return TorchEngine(EngineConfig(model="tiny", mode=MODE, max_batch_tokens=3072), Loaded(model, None, None))


def questions(rng, few):
    lengths = ((1, 65, 150), (1, 17)) if few else ((1, 2, 31, 32, 33, 65, 129, 150), (1, 2, 3, 17, 33, 64))
    prompts = [rng.integers(0, 1021, n, dtype=np.int32) for n in lengths[0]]
    prompts.append(np.concatenate([prompts[-1], prompts[-3]]))  # nested: one prompt a prefix of another
    return [
        (prompt, rng.integers(0, 1021, n, dtype=np.int32), temperature, normalizer)
        for prompt in prompts
        for n in lengths[1]
        for temperature, normalizer in ((1.0, "softmax"), (0.7, "softmax"), (1.7, "stablemax"))
    ]


def composition(rng, asked):
    """Some of the questions, in any order; what has prompt, temperature and normalizer in common may be one group."""
    groups = {}
    for i in rng.choice(len(asked), rng.integers(1, min(13, len(asked))), replace=False):
        prompt, _, temperature, normalizer = asked[i]
        key = (prompt.tobytes(), temperature, normalizer) if rng.random() < 0.7 else int(i)
        groups.setdefault(key, []).append(int(i))
    return list(groups.values())


def main():
    host, rng = engine(), np.random.default_rng(0)
    asked = questions(rng, few=TRIALS < 100)

    def score(groups):
        pieces = [Piece(asked[ids[0]][0], tuple(asked[i][1] for i in ids), *asked[ids[0]][2:]) for ids in groups]
        return [scores.logprobs for scores in host.compute(host.prepare(pieces)).pieces]

    alone = [score([[i]])[0].tobytes() for i in range(len(asked))]
    differing = 0
    for _ in range(TRIALS):
        groups = composition(rng, asked)
        for ids, logprobs in zip(groups, score(groups), strict=True):
            ends = np.cumsum([len(asked[i][1]) for i in ids])
            for i, end in zip(ids, ends, strict=True):
                differing += logprobs[end - len(asked[i][1]) : end].tobytes() != alone[i]
    print(
        json.dumps(
            {
                "bitwise": host.info.bitwise,
                "tier": host.info.tier,
                "differing": differing,
                "everything": hashlib.sha256(b"".join(alone)).hexdigest(),
            }
        )
    )


if __name__ == "__main__":
    main()
