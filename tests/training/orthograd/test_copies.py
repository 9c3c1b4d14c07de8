"""OrthoGrad copied, pickled, wrapped and scheduled: each copy projects, and no other instance notices."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import GradientState
from grpo_training.orthograd import OrthoGrad, attach, project
from grpo_training.orthograd.hook import Projection
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau


def saved_and_loaded(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),  # noqa: S301
    "torch.save": saved_and_loaded,
}
MAKERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: Adam(p, lr=0.01),
    "AdamW": lambda p: AdamW(p, lr=0.01, fused=True),
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def backward(net: nn.Module) -> Tensor:
    net.zero_grad()
    loss = net(torch.linspace(-1, 1, 12).view(3, 4)).square().sum()
    loss.backward()
    return loss


def walk(net: nn.Module, optimizer: Any, steps: int = 3) -> list[Tensor]:
    for _ in range(steps):
        backward(net)
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def by_hand(make: Callable[[Any], Optimizer], steps: int) -> list[Tensor]:
    net = model()
    optimizer = make(net.parameters())
    for _ in range(steps):
        backward(net)
        project(optimizer.param_groups)
        optimizer.step()
    return [p.detach() for p in net.parameters()]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def projections(optimizer: Any) -> int:
    return sum(isinstance(hook, Projection) for hook in optimizer._optimizer_step_pre_hooks.values())


@pytest.mark.parametrize("how", list(COPIES))
@pytest.mark.parametrize("name", list(MAKERS))
def test_a_copy_projects_and_goes_on_where_it_was(how: str, name: str) -> None:
    net = model()
    optimizer = OrthoGrad(MAKERS[name](net.parameters()))
    walk(net, optimizer, 2)
    twin_net, twin = COPIES[how]((net, optimizer))  # together, so that the copy trains the copied weights
    assert twin.base is not optimizer.base
    assert projections(twin) == projections(optimizer) == 1
    expected = by_hand(MAKERS[name], 5)
    assert_same(walk(twin_net, twin), expected)
    assert_same(walk(net, optimizer), expected)


@pytest.mark.parametrize("how", list(COPIES))
def test_a_copy_breaks_nobody_else(how: str) -> None:
    before = {name: (net := model(), OrthoGrad(make(net.parameters()))) for name, make in MAKERS.items()}
    COPIES[how](before["SGD"][1])
    after = {name: (net := model(), OrthoGrad(make(net.parameters()))) for name, make in MAKERS.items()}
    for name, make in MAKERS.items():
        expected = by_hand(make, 3)
        assert_same(walk(*before[name]), expected)
        assert_same(walk(*after[name]), expected)


def test_a_copy_of_a_copy_and_the_granularity() -> None:
    net = model()
    optimizer = OrthoGrad(SGD(net.parameters(), lr=0.1), granularity="row")
    twin_net, twin = copy.deepcopy(copy.deepcopy((net, optimizer)))
    assert_same(walk(twin_net, twin), walk(net, optimizer))
    assert projections(twin) == 1


def test_a_shallow_copy_shares_the_optimizer_and_its_hook() -> None:
    net = model()
    optimizer = OrthoGrad(SGD(net.parameters(), lr=0.1, momentum=0.9))
    twin = copy.copy(optimizer)
    assert twin.base is optimizer.base
    assert projections(twin) == 1
    assert_same(walk(net, twin), by_hand(MAKERS["SGD"], 3))


class Named(OrthoGrad):
    """A subclass with state and a step of its own."""

    def __init__(self, base: Optimizer) -> None:
        super().__init__(base, granularity="tensor")
        self.label = "mine"
        self.steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return super().step(closure)


@pytest.mark.parametrize("how", list(COPIES))
def test_a_subclass(how: str) -> None:
    net = model()
    optimizer = Named(SGD(net.parameters(), lr=0.1, momentum=0.9))
    walk(net, optimizer, 1)
    twin_net, twin = COPIES[how]((net, optimizer))
    assert (twin.label, twin.steps, type(twin)) == ("mine", 1, Named)
    assert_same(walk(twin_net, twin, 2), by_hand(MAKERS["SGD"], 3))
    assert (twin.steps, optimizer.steps) == (3, 1)


SCHEDULERS: list[Callable[[Optimizer], Any]] = [
    lambda o: CosineAnnealingLR(o, T_max=10),
    lambda o: LambdaLR(o, lambda n: 1 / (n + 1)),
    lambda o: OneCycleLR(o, max_lr=0.1, total_steps=10),
    lambda o: ReduceLROnPlateau(o, patience=0),
]


@pytest.mark.parametrize("make_scheduler", SCHEDULERS)
def test_schedulers_that_put_their_own_step_around(make_scheduler: Callable[[Optimizer], Any]) -> None:
    def run(wrapped: bool) -> list[Tensor]:
        net = model()
        base = SGD(net.parameters(), lr=0.1, momentum=0.9)
        optimizer = OrthoGrad(base) if wrapped else base
        scheduler = make_scheduler(optimizer)
        if wrapped:  # copied with the scheduler's step around its own, which torch's optimizers too leave behind
            net, optimizer = copy.deepcopy((net, optimizer))
            for group in optimizer.param_groups:
                group["lr"] = group.pop("initial_lr", group["lr"])
            scheduler = make_scheduler(optimizer)
        for n in range(3):
            backward(net)
            if not wrapped:
                project(base.param_groups)
            optimizer.step()
            scheduler.step(n) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
        return [p.detach() for p in net.parameters()]

    assert_same(run(wrapped=True), run(wrapped=False))


def test_state_dicts_go_in_and_out_with_their_hooks() -> None:
    net = model()
    optimizer = OrthoGrad(AdamW(net.parameters(), lr=0.01))
    walk(net, optimizer, 2)
    seen: list[str] = []
    optimizer.register_state_dict_post_hook(lambda o, state: seen.append("saved"))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    state = saved_and_loaded({"optimizer": optimizer.state_dict(), "net": net.state_dict()})
    fresh = model()
    fresh.load_state_dict(state["net"])
    resumed = OrthoGrad(AdamW(fresh.parameters(), lr=9.0))
    resumed.load_state_dict(state["optimizer"])
    optimizer.load_state_dict(saved_and_loaded(state["optimizer"]))  # torch would share the tensors between the two
    assert seen == ["saved", "loaded"]
    assert projections(resumed) == projections(optimizer) == 1
    assert_same(walk(fresh, resumed), walk(net, optimizer))


def test_new_groups_of_a_copy_are_projected() -> None:
    net = model()
    optimizer = copy.deepcopy((net, OrthoGrad(SGD(net[0].parameters(), lr=0.1))))
    twin_net, twin = optimizer
    twin.add_param_group({"params": list(twin_net[2].parameters())})
    backward(twin_net)
    twin.step()
    weight = twin_net[2].weight
    assert abs(float((weight.grad * model()[2].weight.detach()).sum())) < 1e-6 * float(weight.grad.norm())


@pytest.fixture
def accelerated() -> Any:
    GradientState._reset_state()  # whoever loaded data before left weak references in it, which no pickle takes
    Accelerator(cpu=True)
    return AcceleratedOptimizer


@pytest.mark.parametrize("order", ["accelerate around it", "it around accelerate", "hook through accelerate"])
def test_accelerates_wrapper(accelerated: Any, order: str) -> None:
    net = model()
    base = SGD(net.parameters(), lr=0.1, momentum=0.9)
    if order == "accelerate around it":
        optimizer = accelerated(OrthoGrad(base))
        optimizer.param_groups = optimizer.param_groups
        net, optimizer = pickle.loads(pickle.dumps((net, optimizer)))  # noqa: S301
    elif order == "it around accelerate":
        optimizer = OrthoGrad(accelerated(base))
    else:
        optimizer = accelerated(base)
        attach(optimizer)
    optimizer.zero_grad()
    assert_same(walk(net, optimizer), by_hand(MAKERS["SGD"], 3))


def test_a_gradient_scaler_unscales_for_it(accelerated: Any) -> None:
    """A fused optimizer inside would leave the unscaling to the step that the scaler calls, which is the wrapper's."""
    net = model()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = OrthoGrad(AdamW(net.parameters(), lr=0.01, fused=True))
    for _ in range(3):
        net.zero_grad()
        scaler.scale(net(torch.linspace(-1, 1, 12).view(3, 4)).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    for ours, theirs in zip(net.parameters(), by_hand(MAKERS["AdamW"], 3), strict=True):
        torch.testing.assert_close(ours.detach(), theirs)


def test_what_is_no_optimizer_is_refused() -> None:
    net = model()
    with pytest.raises(TypeError, match=r"OrthoGrad\(AdamW\(parameters\)\)"):
        OrthoGrad(net.parameters())  # pyright: ignore[reportArgumentType]
    with pytest.raises(AttributeError, match="nonsense"):
        _ = OrthoGrad(SGD(net.parameters(), lr=0.1)).nonsense
