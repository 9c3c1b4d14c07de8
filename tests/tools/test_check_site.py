"""A fault that a reader would meet in the built site is found, and what is right is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_site import faults, main


def site(folder: Path, body: str) -> Path:
    (folder / "other").mkdir()
    (folder / "other/index.html").write_text('<h1 id="there">Other</h1>')
    (folder / "style.css").write_text("")
    (folder / "index.html").write_text(f'<link rel="stylesheet" href="style.css">{body}')
    return folder


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="gone/">x</a>', "index.html: gone/: no such file"),
        ('<a href="other/#gone">x</a>', "index.html: other/#gone: no such anchor"),
        ('<a href="#gone">x</a>', "index.html: #gone: no such anchor"),
        ('<img src="gone.png">', "index.html: gone.png: no such file"),
        ('<script src="https://cdn.example/x.js"></script>', "index.html: fetches https://cdn.example/x.js"),
        ('<script src="//cdn.example/x.js"></script>', "index.html: fetches //cdn.example/x.js"),
        ('<link rel="stylesheet" href="https://cdn.example/x.css">', "index.html: fetches https://cdn.example/x.css"),
    ],
)
def test_a_fault_is_named_with_its_page(tmp_path: Path, body: str, fault: str) -> None:
    assert faults(site(tmp_path, body)) == [fault]
    assert main([str(tmp_path)]) == 1


@pytest.mark.parametrize(
    "body",
    [
        '<a href="other/">x</a><a href="other/#there">x</a><a href="other/index.html#there">x</a>',
        '<h2 id="here"></h2><a href="#here">x</a><a href="#">x</a>',
        '<a href="https://elsewhere.example/gone#gone">a reader follows this one</a><a href="mailto:a@b.example">x</a>',
        '<link rel="canonical" href="https://elsewhere.example/">',
    ],
)
def test_what_is_right_is_left_alone(tmp_path: Path, body: str) -> None:
    assert faults(site(tmp_path, body)) == []
    assert main([str(tmp_path)]) == 0


def test_a_site_without_pages_is_a_fault(tmp_path: Path) -> None:
    assert faults(tmp_path) == [f"{tmp_path}: there is no page"]
