"""torch's private operators: that this torch has them, and what happens with one that has not."""

import logging

import numpy as np
import pytest
import torch
from grpo_numerics import torch_ops
from grpo_numerics.packed import PackedLayout, Schedule, packed_attention
from grpo_numerics.packed.kernels import Flash


@pytest.fixture(autouse=True)
def asked_anew():
    """Each test finds out by itself, and leaves nothing found out under a patch."""
    torch_ops.flash_on_cpu.cache_clear()
    yield
    torch_ops.flash_on_cpu.cache_clear()


def attention():
    """Output and gradients of one small packed stream, grouped heads included."""
    prompt, *completions = (np.array(ids, np.int32) for ids in ([1, 2, 3], [4, 5, 7], [6, 8]))
    layout = PackedLayout.build([prompt], [completions], share_prefixes=True)
    rows = layout.tokens
    q, k, v = (torch.sin(torch.arange(float(h * rows * 4)) + h).view(h, rows, 4) for h in (4, 2, 2))
    for tensor in (q, k, v):
        tensor.requires_grad_()
    out = packed_attention(q, k, v, Schedule(layout, torch.device("cpu")), scale=0.5)
    out.square().sum().backward()
    return [out.detach(), q.grad, k.grad, v.grad]


def test_this_torch_has_the_operators_that_packed_attention_calls():
    fault = torch_ops.flash_fault()
    assert fault is None, f"torch {torch.__version__} broke it: {fault}"


def test_a_torch_without_the_operators_computes_the_same_by_the_plain_kernel_and_is_named(monkeypatch, caplog):
    expected = attention()
    torch_ops.flash_on_cpu.cache_clear()
    monkeypatch.setattr(torch_ops, "_FORWARD", "_gone_since_yesterday")
    with caplog.at_level(logging.WARNING, logger=torch_ops.__name__):
        got = attention()
        attention()
    assert not Flash.takes(*[torch.zeros(1, 1, 1)] * 3)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert len(caplog.records) == 1, "said once, whoever asks again"
    assert torch.__version__ in caplog.text
    assert "_gone_since_yesterday" in caplog.text


@pytest.mark.parametrize(
    ("operator", "changed", "part"),
    [
        ("flash_forward", lambda out, lse: (out, lse / 0.6931), "log-sum-exp"),
        ("flash_forward", lambda out, lse: (out * 1.1, lse), "output"),
        ("flash_backward", lambda dq, dk, dv: (dq, dv, dk), "gradient of k"),
    ],
)
def test_an_operator_that_answers_something_else_is_not_used(monkeypatch, operator, changed, part):
    real = getattr(torch_ops, operator)
    monkeypatch.setattr(torch_ops, operator, lambda *args: changed(*real(*args)))
    assert part in torch_ops.flash_fault()
    assert not torch_ops.flash_on_cpu()


def test_an_operator_that_takes_other_arguments_is_not_used(monkeypatch):
    def no_scale(*args):
        raise RuntimeError("expected at most 6 argument(s) but received 7")

    monkeypatch.setattr(torch_ops, "flash_backward", no_scale)
    assert "at most 6" in torch_ops.flash_fault()


@pytest.mark.parametrize("tell", [torch_ops.cpu_has_amx, torch_ops.cpu_has_avx512_bf16])
def test_what_a_cpu_has_is_asked_of_torch_and_is_not_there_when_torch_cannot_tell(monkeypatch, tell):
    name = {"cpu_has_amx": "_is_amx_tile_supported", "cpu_has_avx512_bf16": "_is_avx512_bf16_supported"}[tell.__name__]
    assert hasattr(torch.cpu, name), f"torch {torch.__version__} does not tell any more"
    monkeypatch.setattr(torch.cpu, name, lambda: True)
    assert tell() is True
    monkeypatch.delattr(torch.cpu, name)
    assert tell() is False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_this_torch_has_the_operator_that_gathered_attention_calls():
    fault = torch_ops.segments_fault(torch.device("cuda", 0))
    assert fault is None, f"torch {torch.__version__} broke it: {fault}"


def test_where_that_operator_does_not_run_it_is_not_used(caplog):
    torch_ops.flash_on_gpu.cache_clear()
    assert not torch_ops.flash_on_gpu(torch.device("cpu"))
    assert torch.__version__ in caplog.text
    torch_ops.flash_on_gpu.cache_clear()


@pytest.mark.parametrize(
    ("changed", "part"), [(lambda out, lse: (out.flip(0), lse), "output"), (lambda out, lse: (out, lse * 2), "log-sum")]
)
def test_attention_of_segments_that_answers_something_else_is_not_used(monkeypatch, changed, part):
    """Written out here for a CPU, and then changed."""

    def written_out(q, k, v, cu_q, cu_k, max_q, max_k, scale, window):
        q, k, v = (t.double().transpose(0, 1) for t in (q, k, v))
        scores = q @ k.transpose(1, 2) * scale + torch.tensor([[0, 0, -torch.inf], [0, 0, 0]])
        return (torch.softmax(scores, -1) @ v).transpose(0, 1), scores.logsumexp(-1)

    monkeypatch.setattr(torch_ops, "flash_of_segments", written_out)
    assert torch_ops.segments_fault(torch.device("cpu")) is None
    monkeypatch.setattr(torch_ops, "flash_of_segments", lambda *args: changed(*written_out(*args)))
    assert part in torch_ops.segments_fault(torch.device("cpu"))
