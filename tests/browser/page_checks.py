"""What the tests of the pages look at in a page, beside what playwright looks at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page

AXE = (Path(__file__).parent / "vendor/axe.min.js").read_text(encoding="utf-8")

Open = Callable[..., Page]


def axe_finds(page: Page) -> list[str]:
    """What axe-core says of the page as it stands, of any impact. The context must have been opened with bypass_csp."""
    page.evaluate(AXE)
    found = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    return [f"{v['id']} ({v['impact']}): {[node['html'][:120] for node in v['nodes'][:3]]}" for v in found]


def overflows(page: Page) -> bool:
    """Whether the page is wider than its window."""
    return page.evaluate("() => document.documentElement.scrollWidth > innerWidth")
