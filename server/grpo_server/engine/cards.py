"""What a card does at most, as its data sheet has it: dense products, and no sparsity, on which most sheets lead.

A name that is not in the table is not known: a slice of a card (MIG), a part made for one customer and a card for desktops have
other figures under names that begin alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """10^12 operations a second. half: bfloat16 or float16 summed in float32, on tensor cores. single: IEEE float32, which has
    none."""

    half: float
    single: float


_HOPPER, _HOPPER_PCIE, _HOPPER_NVL = Peak(989.4, 66.9), Peak(756.0, 51.2), Peak(835.5, 60.0)
_AMPERE = Peak(312.0, 19.5)

# By the name that the driver gives, less maker, memory and socket.
CARDS: Mapping[str, Peak] = {
    "A10": Peak(125.0, 31.2),
    "A30": Peak(165.0, 10.3),
    "A40": Peak(149.7, 37.4),
    "A100": _AMPERE,
    "A100 PCIE": _AMPERE,
    "A800": _AMPERE,
    "A800 PCIE": _AMPERE,
    "B200": Peak(2250.0, 75.0),
    "GB200": Peak(2500.0, 80.0),
    "GH200": _HOPPER,
    "H20": Peak(148.0, 44.0),
    "H100": _HOPPER,
    "H100 NVL": _HOPPER_NVL,
    "H100 PCIE": _HOPPER_PCIE,
    "H200": _HOPPER,
    "H200 NVL": _HOPPER_NVL,
    "H800": _HOPPER,
    "H800 PCIE": _HOPPER_PCIE,
    "L4": Peak(121.0, 30.3),
    "L20": Peak(119.5, 59.8),
    "L40": Peak(181.05, 90.5),
    "L40S": Peak(362.05, 91.6),
}

# 64 GB are not among them: an A100 of that size has more multiprocessors than others.
_BESIDE = re.compile(r"NVIDIA|TESLA|(24|40|48|80|94|96|120|141|144|480)GB?|HBM[23]E?|SXM\d?")


def peak_of(card: str) -> Peak | None:
    """card: the name that the driver gives. None where it is not known."""
    words = [word for word in re.split(r"[\s-]+", card.upper()) if not _BESIDE.fullmatch(word)]
    return CARDS.get(" ".join(words))


def peak_flops(cards: Iterable[str], dtype: torch.dtype | None, given: float | None = None) -> float | None:
    """Operations a second of all cards together, computing in this type. given: 10^12 of one of them, whatever the table has.
    None where one of the cards is not known, or the type."""
    total = 0.0
    for card in cards:
        peak = peak_of(card)
        if given is not None:
            total += given
        elif peak is not None and dtype in (torch.bfloat16, torch.float16):
            total += peak.half
        elif peak is not None and dtype == torch.float32:
            total += peak.single
        else:
            return None
    return total * 1e12
