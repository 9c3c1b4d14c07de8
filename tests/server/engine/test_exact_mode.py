"""Exact mode: the same question has the same bits, whatever shares the batch, at any number of threads, across restarts, with
the instructions of this CPU and with those of lesser ones. So has invariant mode, in narrower types.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# One machine stands for several: torch's kernels and MKL's as narrower CPUs get them.
NARROWER = ["default", "avx2", "avx512"]
MKL_MODES = ["COMPATIBLE", "SSE4_2", "AVX2", "AVX2,STRICT", "AVX512,STRICT"]


def run(threads, trials, mode="exact", dtype="float32", model="llama", **environment):
    program = str(Path(__file__).with_name("keeps_bits.py"))
    command = [sys.executable, program, str(threads), str(trials), mode, dtype, model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_kept(seen):
    assert (seen["bitwise"], seen["tier"], seen["differing"]) == (True, "packed", 0)


@pytest.mark.timeout(900)
def test_a_thousand_batch_compositions_keep_every_bit():
    two = run(threads=2, trials=1000)
    one = run(threads=1, trials=100)
    again = run(threads=2, trials=100)
    for seen in (two, one, again):
        assert_kept(seen)
    assert two["everything"] == one["everything"] == again["everything"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_three_threads_keep_every_bit(model):
    """Shares of three leave a remainder wherever rows are not padded for it, which two hide."""
    three, one = run(3, 60, model=model), run(1, 20, model=model)
    assert_kept(three)
    assert_kept(one)
    assert three["everything"] == one["everything"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("capability", NARROWER)
def test_every_width_of_vectors_keeps_every_bit(capability):
    own = torch.backends.cpu.get_cpu_capability().lower()
    if NARROWER.index(capability) > (NARROWER.index(own) if own in NARROWER else 0):
        pytest.skip(f"this CPU has no {capability}")
    for threads, model in ((2, "llama"), (3, "gemma2"), (3, "qwen3_moe")):
        assert_kept(run(threads, 30, model=model, ATEN_CPU_CAPABILITY=capability))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mkl", MKL_MODES)
def test_a_claim_is_kept_in_every_mode_of_mkl(mkl):
    """Under the modes that `grpo-server` sets the claim is made; under an operator's own only where it holds."""
    if mkl.startswith("AVX512") and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        pytest.skip("MKL takes no mode for instructions that this CPU lacks")
    seen = run(2, 30, MKL_CBWR=mkl)
    assert seen["bitwise"] or not mkl.endswith("STRICT")
    assert seen["differing"] == 0 or not seen["bitwise"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        ("llama", "bfloat16"),
        ("gemma2", "bfloat16"),
        ("gpt2", "bfloat16"),
        ("qwen3_moe", "bfloat16"),
        ("llama", "float16"),
        ("llama", "float32"),
    ],
)
def test_invariant_mode_keeps_every_bit(model, dtype):
    first, again = run(2, 40, "invariant", dtype, model), run(2, 1, "invariant", dtype, model)
    assert_kept(first)
    assert first["everything"] == again["everything"]


@pytest.mark.timeout(900)
def test_exact_mode_keeps_every_bit_where_the_products_do_not():
    """Without MKL's strict mode a product's rows change their bits with its height: then its shape is fixed."""
    assert_kept(run(2, 40, MKL_CBWR="COMPATIBLE"))
    assert_kept(run(3, 20, MKL_CBWR="AUTO"))
