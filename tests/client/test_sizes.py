"""Sizes as people write them."""

from __future__ import annotations

import pytest
from grpo_client.sizes import parse_size, read_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("4096", 4096), ("64k", 64_000), ("64K", 64_000), ("64kB", 64_000), ("64Ki", 65_536), ("64KiB", 65_536),
        ("256MiB", 268_435_456), ("256 MiB", 268_435_456), ("256mib", 268_435_456), ("1GB", 1_000_000_000),
        ("1.5GiB", 1_610_612_736), ("1.1GB", 1_100_000_000), ("2T", 2_000_000_000_000), ("10B", 10), (" 7 ", 7),
    ],
)  # fmt: skip
def test_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MiB",
        "-1",
        "+1",
        "1e9",
        "0x10",
        "1_000",
        "nan",
        "inf",
        "1,5GB",
        "1 2",
        "5bit",
        "3PB",
        "1.5",
        "0.3k1",
        "٣",
        ".5k",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a size|whole number"):
        parse_size(text)


def test_numbers_go_through() -> None:
    assert read_size(17) == 17
    assert read_size("17k") == 17_000
