"""The network of the paper's main figures: two hidden layers of ReLUs, torch's own initialisation."""

from __future__ import annotations

from torch import nn


def mlp(inputs: int, width: int, classes: int, *, bias: bool) -> nn.Sequential:
    """inputs -> width -> width -> classes.

    The paper's modular tasks have no bias: every weight is then a matrix, and scaling all of them scales the logits, which
    is the direction that naive loss minimisation takes. Its sparse parity has biases.
    """
    return nn.Sequential(
        nn.Linear(inputs, width, bias=bias),
        nn.ReLU(),
        nn.Linear(width, width, bias=bias),
        nn.ReLU(),
        nn.Linear(width, classes, bias=bias),
    )
