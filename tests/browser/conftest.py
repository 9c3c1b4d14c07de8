"""A real Chromium over a real server with a fake engine. Without a Chromium on the machine every test here is skipped, by name.

A page that logs anything, throws, or asks another host fails its test, whatever else the test looks at.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
sys.path.insert(0, str(Path(__file__).parent))

from page_checks import Open
from server_fakes import FakeEngine, real_server

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def chromium() -> str | None:
    """The browser's path: what CHROMIUM names, or the first one on the PATH."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")  # not longer: while playwright runs, no test of another module can have an event loop
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip("there is no chromium on this machine; install it, or name one in CHROMIUM")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=flags)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens an address in a fresh context: open_page(url, width=1280, dark=False, expected=("what may be logged",))."""
    with ExitStack() as stack:
        complaints: list[str] = []

        def opened(
            url: str, *, width: int = 1280, dark: bool = False, expected: tuple[str, ...] = (), **how: Any
        ) -> Page:
            context: BrowserContext = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", **how
            )
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(20_000)
            origin = "/".join(url.split("/")[:3])

            def logged(message: ConsoleMessage) -> None:
                if not any(words in message.text for words in expected):
                    complaints.append(f"console {message.type}: {message.text}")

            def asked(request: Request) -> None:
                if not request.url.startswith((f"{origin}/", "data:", f"blob:{origin}/")):
                    complaints.append(f"asked another host: {request.url}")

            page.on("console", logged)
            page.on("pageerror", lambda error: complaints.append(f"threw: {error}"))
            page.on("request", asked)
            page.goto(url)
            return page

        yield opened
    assert not complaints, complaints


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[str]:
    """The address of a server without keys."""
    with real_server(engine) as url:
        yield url
