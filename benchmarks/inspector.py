"""How quick the inspector's page Scores is in a real Chromium, against the figures that it is to hold.

    grpo-server --model demo &
    python -m benchmarks.inspector --url http://127.0.0.1:8000       needs playwright and a Chromium; half a minute

Times are of the page: from its start to what is on the screen, or from an event to the second frame after it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.table import Table

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# What is measured, and the milliseconds (or rows) that it is to stay under.
LIMITS = {
    "first paint": 500,
    "ready": 1000,
    "5,000 tokens: longest task": 200,
    "5,000 tokens: other colour": 50,
    "5,000 tokens: a key": 17,
    "10,000 samples: sort": 100,
    "10,000 samples: rows in the document": 60,
}
WATCH_TASKS = """window.tasks = [];
new PerformanceObserver(list => window.tasks.push(...list.getEntries().map(e => e.duration))).observe({type: "longtask"});"""
# Milliseconds from an event to the second frame after it.
TIMED = """(act) => new Promise(done => { const start = performance.now(); act();
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start))); })"""


def record(step: int, size: int, tokens: int) -> dict[str, Any]:
    """A group of random completions with random log-probs near each other."""
    rng = np.random.default_rng(step)
    r = -rng.exponential(1.0, (size, tokens)).astype(np.float32)
    t = (r + rng.normal(0, 0.3, r.shape)).astype(np.float32)
    return {
        "step": step,
        "prompt": f"Question {step}",
        "prompt_ids": [20, 21],
        "completions": [f"answer {step} {g}" for g in range(size)],
        "completion_ids": rng.integers(20, 90, (size, tokens)).tolist(),
        "rewards": [float(g % 2) for g in range(size)],
        "policy_logprobs": [[float(str(x)) for x in row] for row in t],
        "ref_logprobs": [[float(str(x)) for x in row] for row in r],
    }


def drop(page: Page, records: list[dict[str, Any]], folder: Path) -> None:
    """Open the records as a file, and wait until they are shown."""
    path = folder / "samples.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    page.locator("input[type=file]").first.set_input_files(path)
    page.locator(".columns").wait_for()
    page.locator(".findings li, .findings details").first.wait_for()


def timed(page: Page, action: str, times: int = 5) -> list[float]:
    """action: JavaScript that does one thing."""
    return [page.evaluate(f"() => ({TIMED})(() => {{ {action.replace('$i', str(i))} }})") for i in range(times)]


def start(page: Page, url: str) -> dict[str, list[float]]:
    """Of an empty page."""
    paints, readies = [], []
    for _ in range(5):
        page.goto(f"{url}/ui")
        page.locator(".drop").wait_for()
        page.locator("header .status[title]").wait_for()
        readies.append(page.evaluate("() => performance.now()"))
        paints.append(page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    return {"first paint": paints, "ready": readies}


def one_long(page: Page, folder: Path) -> dict[str, list[float]]:
    """One completion of 5,000 tokens."""
    drop(page, [record(0, 1, 5000)], folder)
    page.wait_for_function("document.querySelectorAll('.tok').length === 5000")
    page.wait_for_timeout(1500)  # what is done while nothing else is to be done belongs to it
    longest = [max(page.evaluate("() => window.tasks"), default=0.0)]
    colours = "const s = document.querySelector('.view select'); s.selectedIndex = ($i + 1) % s.options.length; "
    key = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));"
    return {
        "5,000 tokens: longest task": longest,
        "5,000 tokens: other colour": timed(page, colours + "s.dispatchEvent(new Event('change', {bubbles: true}));"),
        "5,000 tokens: a key": timed(page, key, 9),
    }


def many(page: Page, folder: Path) -> dict[str, list[float]]:
    """10,000 completions of 8 tokens."""
    drop(page, [record(step, 8, 8) for step in range(1250)], folder)
    page.locator(".list [role=row]").nth(5).wait_for()
    page.wait_for_timeout(1500)
    headers = "const heads = document.querySelectorAll('.list [role=columnheader] button'); "
    sorts = timed(page, headers + "heads[$i % heads.length].click();")
    rows = page.locator(".list [role=row]").count()
    return {"10,000 samples: sort": sorts, "10,000 samples: rows in the document": [float(rows)]}


def on_page(browser: Browser, url: str, measure: Callable[[Page], dict[str, list[float]]]) -> dict[str, list[float]]:
    """In a window of its own."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=True)
    page = context.new_page()
    page.add_init_script(WATCH_TASKS)
    page.goto(f"{url}/ui")
    page.locator(".drop").wait_for()
    found = measure(page)
    context.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    url = parser.parse_args().url.rstrip("/")
    path = os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        raise SystemExit("there is no chromium on this machine; install it, or name one in CHROMIUM")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        found = on_page(browser, url, lambda page: start(page, url))
        found |= on_page(browser, url, lambda page: one_long(page, Path(folder)))
        found |= on_page(browser, url, lambda page: many(page, Path(folder)))
        browser.close()
    table = Table("", "median", "all", "to hold")
    for name, limit in LIMITS.items():
        values = found[name]
        table.add_row(
            name, f"{statistics.median(values):.0f}", " ".join(f"{v:.0f}" for v in sorted(values)), f"< {limit}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
