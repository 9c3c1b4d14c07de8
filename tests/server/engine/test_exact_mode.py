"""Exact mode: the same question has the same bits, whatever shares the batch, at one thread or two, across restarts. So has
fast mode where every forward has the same shape.

The process that asks sets MKL_CBWR before torch is imported, as `grpo-server` does: so these run in processes of their own.
"""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
from grpo_server.engine import environment
mode, dtype = sys.argv[3:]
environment.prepare(mode, threads=int(sys.argv[1]))
import hashlib
import numpy as np, torch
torch.set_num_threads(int(sys.argv[1]))
from transformers import AutoModelForCausalLM, LlamaConfig
from grpo_server.engine import EngineConfig, Piece
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded

torch.manual_seed(7)
model = AutoModelForCausalLM.from_config(LlamaConfig(
    vocab_size=1021, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=3,
    num_key_value_heads=1, head_dim=32, max_position_embeddings=512)).eval().requires_grad_(False).to(getattr(torch, dtype))
# room for the largest batch below
rows = None if mode == "exact" else 3072
engine = TorchEngine(EngineConfig(model="tiny", mode=mode, batch_rows=rows), Loaded(model, None, None))
assert engine.info.bitwise and engine.info.tier == "packed", engine.info
rng = np.random.default_rng(0)
lengths = ((1, 2, 31, 32, 33, 65, 129, 150), (1, 2, 3, 17, 33, 64))
if rows:  # each costs a full batch
    lengths = ((1, 65, 150), (1, 17))
prompts = [rng.integers(0, 1021, n, dtype=np.int32) for n in lengths[0]]
prompts.append(np.concatenate([prompts[-1], prompts[-3]]))  # nested: one prompt a prefix of another
asked = []
for p in prompts:
    for n in lengths[1]:
        c = rng.integers(0, 1021, n, dtype=np.int32)
        for temperature, normalizer in ((1.0, "softmax"), (0.7, "softmax"), (1.7, "stablemax")):
            asked.append((p, c, temperature, normalizer))
def score(pieces):
    return engine.compute(engine.prepare(pieces)).pieces
alone = {}
for i, (p, c, t, n) in enumerate(asked):
    alone[i] = score([Piece(p, (c,), t, n)])[0].logprobs.tobytes()
differing = 0
for trial in range(int(sys.argv[2])):
    chosen = rng.choice(len(asked), rng.integers(1, min(13, len(asked))), replace=False)
    groups = {}
    for i in chosen:  # what has prompt, temperature and normalizer in common may be one group
        p, c, t, n = asked[i]
        groups.setdefault((p.tobytes(), t, n) if rng.random() < 0.7 else int(i), []).append(int(i))
    pieces = [Piece(asked[ids[0]][0], tuple(asked[i][1] for i in ids), *asked[ids[0]][2:]) for ids in groups.values()]
    for ids, scores in zip(groups.values(), score(pieces)):
        end = 0
        for i in ids:
            start, end = end, end + len(asked[i][1])
            differing += scores.logprobs[start:end].tobytes() != alone[i]
everything = hashlib.sha256(b"".join(alone[i] for i in sorted(alone))).hexdigest()
print(json.dumps({"differing": differing, "everything": everything}))
"""


def run(threads: int, trials: int, mode: str = "exact", dtype: str = "float32") -> dict:
    command = [sys.executable, "-c", PROGRAM, str(threads), str(trials), mode, dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(900)
def test_a_thousand_batch_compositions_keep_every_bit():
    two = run(threads=2, trials=1000)
    one = run(threads=1, trials=100)
    again = run(threads=2, trials=1)
    assert two["differing"] == one["differing"] == 0
    assert two["everything"] == one["everything"] == again["everything"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_fast_mode_keeps_every_bit_where_every_batch_has_one_shape(dtype):
    first, again = run(2, 40, "fast", dtype), run(2, 1, "fast", dtype)
    assert first["differing"] == 0
    assert first["everything"] == again["everything"]
