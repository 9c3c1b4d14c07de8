"""OrthoGrad: what the projection must be in mathematics, its guards, and that every torch optimizer keeps its habits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from grpo_training.orthograd import OrthoGrad, attach, orthogonal, parameter_groups, project
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double().flatten(), b.detach().double().flatten()
    return float(a @ b / (a.norm() * b.norm()))


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2,), (7, 5), (3, 1, 4), (129, 33)])
def test_orthogonal_and_as_long_as_before(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w, g = drawn(*shape, seed=1, dtype=dtype), drawn(*shape, seed=2, dtype=dtype)
    out = orthogonal(w, g)
    eps = torch.finfo(dtype).eps
    assert out.dtype == dtype
    assert out.shape == g.shape
    assert abs(cosine(w, out)) <= 4 * eps
    assert float(out.double().norm()) == pytest.approx(float(g.double().norm()), rel=4 * eps)
    # The paper's formula, in float64.
    wd, gd = w.double(), g.double()
    perp = gd - (wd * gd).sum() / (wd * wd).sum() * wd
    expected = perp * gd.norm() / perp.norm()
    torch.testing.assert_close(out.double(), expected, rtol=16 * eps, atol=16 * eps * float(gd.abs().max()))


def test_nearly_parallel_takes_a_second_projection() -> None:
    w = drawn(1000, seed=1)
    g = w + 1e-5 * drawn(1000, seed=2)
    assert abs(cosine(w, orthogonal(w, g))) < 1e-6
    once = g - (w @ g) / (w @ w) * w
    assert abs(cosine(w, once)) > 1e-4  # what one pass leaves


def test_guards() -> None:
    w, g = drawn(8, seed=1), drawn(8, seed=2)
    zero = torch.zeros(8)
    assert torch.equal(orthogonal(zero, g), g)
    assert torch.equal(orthogonal(w, zero), zero)
    for bad in (math.nan, math.inf):
        broken = g.clone()
        broken[3] = bad
        assert torch.equal(orthogonal(w, broken).nan_to_num(7.0), broken.nan_to_num(7.0))
        assert torch.equal(orthogonal(broken, g), g)
    assert torch.equal(orthogonal(w, 3 * w), zero)  # nothing but rounding is left: no step, and no noise blown up


def test_rows() -> None:
    w, g = drawn(4, 6, seed=1), drawn(4, 6, seed=2)
    w[2] = 0
    out = orthogonal(w, g, rows=True)
    for row in (0, 1, 3):
        torch.testing.assert_close(out[row], orthogonal(w[row], g[row]))
    assert torch.equal(out[2], g[2])
    torch.testing.assert_close(orthogonal(w[0], g[0], rows=True), orthogonal(w[0], g[0]))  # a vector is one row


def test_global_is_one_long_vector() -> None:
    params = [nn.Parameter(drawn(3, 4, seed=1)), nn.Parameter(drawn(5, seed=2)), nn.Parameter(drawn(1, seed=3))]
    for i, p in enumerate(params):
        p.grad = drawn(*p.shape, seed=10 + i)
    alone = params[2].grad.clone()

    def flat(parts: list[Tensor]) -> Tensor:
        return torch.cat([t.flatten() for t in parts])

    expected = orthogonal(flat([p.detach() for p in params[:2]]), flat([p.grad for p in params[:2]]))
    project([{"params": params}], granularity="global")
    torch.testing.assert_close(flat([p.grad for p in params[:2]]), expected)
    assert torch.equal(params[2].grad, alone)


def test_one_element_and_flagged_parameters_are_left_alone() -> None:
    scalar, vector = nn.Parameter(drawn(1, seed=1)), nn.Parameter(drawn(5, seed=2))
    scalar.grad, vector.grad = drawn(1, seed=3), drawn(5, seed=4)
    before = scalar.grad.clone(), vector.grad.clone()
    project([{"params": [scalar]}, {"params": [vector], "orthograd": False}])
    assert torch.equal(scalar.grad, before[0])
    assert torch.equal(vector.grad, before[1])


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        project([{"params": list(table.parameters())}])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.table(ids)))


def loss_of(net: Net) -> Tensor:
    return net(torch.tensor([0, 1, 2, 3])).square().mean()


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def test_parameter_groups_by_name_and_type() -> None:
    model = net()
    kept, skipped = parameter_groups(model, skip_names=["bias"], skip_types=["LayerNorm"], lr=0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)] for p in kept["params"]} == {"table.weight", "head.weight"}
    assert {names[id(p)] for p in skipped["params"]} == {"norm.weight", "norm.bias", "head.bias"}
    assert (kept["orthograd"], skipped["orthograd"], kept["lr"]) == (True, False, 0.1)
    assert len(parameter_groups(model)) == 1
    with pytest.raises(ValueError, match="RMSNorm"):
        parameter_groups(model, skip_types=["RMSNorm"])


MAKERS: list[Callable[[Any], Optimizer]] = [
    lambda p: SGD(p, lr=0.1, momentum=0.9),
    lambda p: Adam(p, lr=0.01),
    lambda p: AdamW(p, lr=0.01, fused=True),
    lambda p: AdamW(p, lr=0.01, foreach=True),
]


def by_hand(make: Callable[[Any], Optimizer], steps: int) -> Net:
    """The plain optimizer, gradients projected between backward and step."""
    model = net()
    optimizer = make(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        project(optimizer.param_groups)
        optimizer.step()
    return model


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("door", ["wrapper", "hook"])
@pytest.mark.parametrize("closure", [False, True])
def test_both_doors_and_closures_do_the_same(make: Callable[[Any], Optimizer], door: str, closure: bool) -> None:
    model = net()
    base = make(model.parameters())
    optimizer = OrthoGrad(base) if door == "wrapper" else base
    if door == "hook":
        attach(optimizer)
    calls = 0

    def evaluate() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(4):
        if closure:
            assert optimizer.step(evaluate) is not None
        else:
            evaluate()
            optimizer.step()
    assert calls == 4
    for ours, theirs in zip(model.parameters(), by_hand(make, 4).parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Searching(SGD):
    """Evaluates its closure several times in one step, as line searches do, and notes what gradient each left."""

    def step(self, closure: Any = None) -> Any:
        self.cosines: list[float] = []
        for _ in range(3):
            with torch.enable_grad():
                loss = closure()
            for p in self.param_groups[0]["params"]:
                if p.norm() > 0:  # where the weights are 0 every gradient is orthogonal
                    self.cosines.append(abs(cosine(p, p.grad)))
                p.data.add_(p.grad, alpha=-0.1)
        return loss


def test_every_evaluation_of_a_closure_is_projected() -> None:
    model = net()
    base = Searching(model.parameters(), lr=0.1)

    def evaluate() -> Tensor:
        base.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    OrthoGrad(base).step(evaluate)
    assert len(base.cosines) >= 9
    assert max(base.cosines) < 1e-6


class Twice(SGD):
    """A subclass whose step calls its base class's, as some do: torch then fires the hooks twice."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_a_step_inside_a_step_projects_once() -> None:
    SGD([nn.Parameter(torch.zeros(2))], lr=0.1)  # makes torch instrument SGD.step itself
    model = net()
    optimizer = Twice(model.parameters(), lr=0.1)
    attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    expected = by_hand(lambda p: SGD(p, lr=0.1), 1)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_handle_takes_it_off() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    attach(optimizer).remove()
    loss_of(model).backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


def test_schedulers_and_new_groups_act_on_the_same_groups() -> None:
    model = net()
    optimizer = OrthoGrad(SGD(model.head.parameters(), lr=0.8))
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.add_param_group({"params": list(model.norm.parameters()), "orthograd": False})
    loss_of(model).backward()
    raw = model.norm.weight.grad.clone()
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == optimizer.base.param_groups[0]["lr"] == 0.4
    assert torch.equal(model.norm.weight.grad, raw)


def test_a_checkpoint_goes_in_and_out_of_the_wrapper() -> None:
    model = net()
    optimizer = OrthoGrad(AdamW(model.parameters(), lr=0.01))
    loss_of(model).backward()
    optimizer.step()
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())

    def go_on(model: Net, optimizer: Optimizer) -> Net:
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        return model

    expected = go_on(model, optimizer)
    fresh = net(1)
    fresh.load_state_dict(weights)
    bare = AdamW(fresh.parameters(), lr=0.5)
    bare.load_state_dict(saved)  # a checkpoint of the wrapper fits the bare optimizer
    resumed = go_on(fresh, OrthoGrad(bare))
    for ours, theirs in zip(resumed.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_old_checkpoints_without_the_flag_are_projected() -> None:
    model = net()
    optimizer = SGD(parameter_groups(model), lr=0.1)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["orthograd"]
    optimizer.load_state_dict(state)
    loss_of(model).backward()
    project(optimizer.param_groups)
    assert model.head.weight.grad is not None
    assert abs(cosine(model.head.weight, model.head.weight.grad)) < 1e-6


# A power of two, so that scaling is exact; the ends leave room for the norm of some thousand entries.
SCALES = {
    torch.float32: [2.0**-140, 2.0**-120, 1e-24, 1e-12, 1e12, 1e24, 2.0**120],
    torch.bfloat16: [2.0**-110, 1e-24, 1e24, 2.0**110],
    torch.float64: [1e-290, 1e-200, 1e200, 1e300],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [False, True])
def test_the_projection_does_not_know_the_scale(dtype: torch.dtype, rows: bool) -> None:
    """Tiny and huge gradients, along tiny and huge weights: the same directions, at their own norms."""
    w, g = drawn(6, 50, seed=1, dtype=dtype), drawn(6, 50, seed=2, dtype=dtype)
    eps = torch.finfo(dtype).eps
    expected = orthogonal(w, g, rows=rows)
    for scale in SCALES[dtype]:
        scale = 2.0 ** round(math.log2(scale))
        small = (g.double() * scale).to(dtype)
        # The last of the smallest numbers are rounded to the dtype's grid.
        grid = torch.finfo(dtype).smallest_normal * eps / scale
        for weight in (w, (w.double() * scale).to(dtype)):
            found = orthogonal(weight, small, rows=rows).double() / scale
            torch.testing.assert_close(found, expected.double(), rtol=4 * eps, atol=4 * eps + 8 * grid)
        if grid < eps:
            assert abs(cosine(w, found)) < 4 * eps + 50 * grid


@pytest.mark.parametrize("granularity", ["tensor", "row", "global"])
def test_tiny_gradients_are_projected_in_a_step(granularity: Any) -> None:
    model = net()
    loss_of(model).mul(1e-24).backward()
    raw = [p.grad.clone() for p in model.parameters()]
    project([{"params": list(model.parameters())}], granularity=granularity)
    again = net()
    loss_of(again).backward()
    project([{"params": list(again.parameters())}], granularity=granularity)
    assert any(not torch.equal(a, p.grad) for a, p in zip(raw, model.parameters(), strict=True))
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours.grad / 1e-24, theirs.grad, rtol=1e-5, atol=1e-6)


def test_scaling_changes_no_bit_of_an_ordinary_gradient() -> None:
    """Powers of two divide out exactly: the formula without them."""
    w, g = drawn(40, 30, seed=1), drawn(40, 30, seed=2)
    x, y = w.flatten(), g.flatten()
    perp = y
    for _ in range(2):
        perp = perp - (x * perp).sum() / (x * x).sum() * x
    plain = perp * ((y * y).sum() / (perp * perp).sum()).sqrt()
    assert torch.equal(orthogonal(w, g).flatten(), plain)
