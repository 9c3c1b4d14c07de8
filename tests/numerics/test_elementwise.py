"""Bits that do not depend on the place: each function over slices of every length and beginning, on several threads; values and
gradients against float64."""

import math

import pytest
import torch
from grpo_numerics.elementwise import log_add_exp, sigmoid, softplus

FUNCTIONS = {
    "softplus": (softplus, torch.nn.functional.softplus),
    "sigmoid": (sigmoid, lambda x: 1 / (1 + torch.exp(-x))),  # whose gradient keeps its precision where y rounds to 1
    "log_add_exp": (lambda x: log_add_exp(x, x.abs() - 2.0), lambda x: torch.logaddexp(x, x.abs() - 2.0)),
}
PRIMITIVES = {
    "exp": torch.exp,
    "log1p": lambda x: torch.log1p(x.abs()),
    "tanh": torch.tanh,
    "log": lambda x: x.abs().log(),
}


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [*FUNCTIONS, *PRIMITIVES])
def test_bits_do_not_depend_on_the_place(name, threads):
    function = FUNCTIONS[name][0] if name in FUNCTIONS else PRIMITIVES[name]
    x = torch.randn(1 << 17, generator=torch.Generator().manual_seed(0)) * 4
    whole = function(x)
    lengths = [*range(1, 70), 127, 1000, 4096, 32768, 32800, 65536 + 32, 98304 + 96, len(x) - 1]
    for length in lengths:
        assert torch.equal(function(x[:length]), whole[:length]), length
    for start in (1, 3, 8, 15, 16, 31):
        assert torch.equal(function(x[start : start + 5000]), whole[start : start + 5000]), start


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients(name):
    function, reference = FUNCTIONS[name]
    x = torch.cat([torch.linspace(-120, 120, 2001), torch.tensor([0.0, 50.0, -50.0, 80.0, -80.0, 88.8, -88.8])])
    x = x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, want = function(x), reference(exact)
    [grad] = torch.autograd.grad(y.sum(), x)
    [want_grad] = torch.autograd.grad(want.sum(), exact)
    # a handful of fp32 operations, each right to 2^-23 relative; down to where fp32 begins to thin out
    torch.testing.assert_close(y.double(), want, rtol=8 * 2**-23, atol=1e-36)
    torch.testing.assert_close(grad.double(), want_grad, rtol=1e-5, atol=1e-36)


def test_the_ends():
    inf = math.inf
    x = torch.tensor([-inf, inf, math.nan])
    torch.testing.assert_close(softplus(x), torch.tensor([0.0, inf, math.nan]), equal_nan=True)
    torch.testing.assert_close(sigmoid(x), torch.tensor([0.0, 1.0, math.nan]), equal_nan=True)
    a, b = torch.tensor([-inf, -inf, 1.0, -inf]), torch.tensor([-inf, 2.0, -inf, math.nan])
    torch.testing.assert_close(log_add_exp(a, b), torch.tensor([-inf, 2.0, 1.0, math.nan]), equal_nan=True)
