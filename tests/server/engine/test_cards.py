"""Which card a driver's name means, and what it does at most: by its data sheet, or not at all."""

from __future__ import annotations

import pytest
import torch
from grpo_server.engine.cards import CARDS, Peak, peak_flops, peak_of
from grpo_server.engine.device import Cuda

# As `nvidia-smi -L` lists them -> dense 10^12 operations a second in bfloat16 and in float32.
NAMES = {
    "NVIDIA H100 80GB HBM3": (989.4, 66.9),
    "NVIDIA H100 PCIe": (756.0, 51.2),
    "NVIDIA H100 NVL": (835.5, 60.0),
    "NVIDIA H200": (989.4, 66.9),
    "NVIDIA H200 NVL": (835.5, 60.0),
    "NVIDIA GH200 480GB": (989.4, 66.9),
    "NVIDIA GH200 144G HBM3e": (989.4, 66.9),
    "NVIDIA H800": (989.4, 66.9),
    "NVIDIA H800 PCIe": (756.0, 51.2),
    "NVIDIA H20": (148.0, 44.0),
    "NVIDIA A100-SXM4-40GB": (312.0, 19.5),
    "NVIDIA A100-SXM4-80GB": (312.0, 19.5),
    "NVIDIA A100 80GB PCIe": (312.0, 19.5),
    "A100-PCIE-40GB": (312.0, 19.5),
    "NVIDIA A800-SXM4-80GB": (312.0, 19.5),
    "NVIDIA A800 80GB PCIe": (312.0, 19.5),
    "NVIDIA A10": (125.0, 31.2),
    "NVIDIA A30": (165.0, 10.3),
    "NVIDIA A40": (149.7, 37.4),
    "NVIDIA L4": (121.0, 30.3),
    "NVIDIA L20": (119.5, 59.8),
    "NVIDIA L40": (181.05, 90.5),
    "NVIDIA L40S": (362.05, 91.6),
    "NVIDIA B200": (2250.0, 75.0),
    "NVIDIA GB200": (2500.0, 80.0),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_a_driver_is_its_own_card(name: str) -> None:
    assert peak_of(name) == Peak(*NAMES[name])


def test_every_card_of_the_table_has_a_name_that_means_it() -> None:
    meant = {id(peak) for name in NAMES if (peak := peak_of(name)) is not None}
    assert meant == {id(peak) for peak in CARDS.values()}


@pytest.mark.parametrize(
    "name",
    [
        "cpu",
        "",
        "NVIDIA",
        "NVIDIA A10G",  # of one cloud, with other figures
        "NVIDIA A100X",
        "NVIDIA A100-SXM-64GB",  # of one machine, with more multiprocessors
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA L40G",
        "NVIDIA RTX A4000",
        "NVIDIA GeForce RTX 4090",
        "NVIDIA RTX 6000 Ada Generation",
        "NVIDIA B300",
        "AMD Instinct MI300X",
        "GRID A100D-40C",
    ],
)
def test_another_name_is_not_guessed(name: str) -> None:
    assert peak_of(name) is None
    assert peak_flops([name], torch.bfloat16) is None


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, 989.4e12),
        (torch.float16, 989.4e12),
        (torch.float32, 66.9e12),
        (torch.float64, None),
        (None, None),
    ],
)
def test_the_peak_is_of_the_type_in_which_is_computed(dtype: torch.dtype | None, expected: float | None) -> None:
    assert peak_flops(["NVIDIA H100 80GB HBM3"], dtype) == pytest.approx(expected) if expected else True
    assert (peak_flops(["NVIDIA H100 80GB HBM3"], dtype) is None) == (expected is None)


def test_cards_add_up_and_one_that_is_not_known_hides_the_sum() -> None:
    assert peak_flops(["NVIDIA L4", "NVIDIA L40S"], torch.bfloat16) == pytest.approx((121.0 + 362.05) * 1e12)
    assert peak_flops(["NVIDIA L4", "NVIDIA L5"], torch.bfloat16) is None


def test_what_is_given_is_of_each_card_and_goes_before_the_table() -> None:
    assert peak_flops(["NVIDIA L4", "something"], None, given=2.5) == 5e12


def test_every_gpu_under_a_model_is_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {0: "NVIDIA L4", 1: "NVIDIA L40S"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    gpus = Cuda(frozenset({torch.device("cuda", 0), torch.device("cuda", 1)}))
    assert sorted(gpus.cards()) == ["NVIDIA L4", "NVIDIA L40S"]
    assert peak_flops(gpus.cards(), torch.float32) == pytest.approx(121.9e12)
