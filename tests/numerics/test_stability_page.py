"""docs/stability.md is run: every snippet, every printed line, and every figure of its prose."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "stability.md"
BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
# What counts as a figure in prose: a decimal, a power of ten, or two digits and more. Citations and names are none.
FIGURE = re.compile(r"(?<![\w.])\d+\.\d+(?:e-?\d+)?(?!\w)|(?<![\w.])\d{2,}(?![\w.]*\w)")
CITATION = re.compile(r"arXiv \d+\.\d+|1\.5-entmax|fp\d+|bf16")


def blocks() -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in BLOCK.finditer(PAGE.read_text())]


def words_and_numbers(text: str) -> tuple[str, list[float]]:
    return NUMBER.sub("#", text), [float(number) for number in NUMBER.findall(text)]


def test_every_snippet_prints_what_the_page_says() -> None:
    namespace: dict[str, Any] = {}
    printed: str | None = None
    checked = 0
    for language, text in blocks():
        if language == "python":
            assert not printed, f"the page does not show the output {printed!r}"
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, str(PAGE), "exec"), namespace)
            printed = out.getvalue()
            continue
        assert printed is not None, f"no snippet prints {text!r}"
        words, numbers = words_and_numbers(printed)
        expected_words, expected_numbers = words_and_numbers(text)
        assert words == expected_words, f"printed {printed!r}"
        # Another CPU's exp may differ in the last bit, which a rounded figure shows as one unit of its last digit.
        assert numbers == pytest.approx(expected_numbers, rel=5e-3, abs=2e-4), printed
        printed = None
        checked += 1
    assert not printed
    assert checked > 15


def test_every_figure_in_the_prose_is_in_a_snippet_or_its_output() -> None:
    prose = CITATION.sub("", BLOCK.sub("", PAGE.read_text()))
    computed = {float(n) for _, text in blocks() for n in NUMBER.findall(text.replace("_", ""))}
    figures = {float(n) for n in FIGURE.findall(prose)}
    assert len(figures) > 5
    assert {f for f in figures if f not in computed and -f not in computed} == set()
