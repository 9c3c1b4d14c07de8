"""Server: figures of a real /metrics, a verdict, and a server that goes and comes back."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from page_checks import Open, axe_finds, overflows
from playwright.sync_api import Page, expect
from server_fakes import FakeEngine, real_server

READER = Path(__file__).parents[2] / "server/grpo_server/ui/pages/server/metrics.js"


def score(url: str, completions: int = 3) -> None:
    group = {"prompt": [20, 21], "completions": [[22 + k, 23] for k in range(completions)]}
    httpx.post(f"{url}/v1/logprobs", json={"groups": [group]}).raise_for_status()


def tile(page: Page, title: str) -> Any:
    return page.locator(".tile", has=page.locator("dt", has_text=re.compile(f"^{title}$")))


def test_every_name_that_the_page_reads_is_in_metrics(server: str) -> None:
    script = READER.read_text()
    names = re.findall(r'"(\w+)"', script[script.index("NAMES = [") : script.index("];")])
    assert len(names) > 12
    score(server)
    httpx.post(f"{server}/v1/logprobs", content=b"{")  # a refusal: counters with labels appear when they first count
    text = httpx.get(f"{server}/metrics").text
    missing = [name for name in names if not re.search(rf"^grpo_server_{name}(_bucket)?[ {{]", text, re.MULTILINE)]
    assert missing == []
    assert re.search(r"^process_start_time_seconds ", text, re.MULTILINE)
    for histogram in ("batch_tokens", "queue_seconds", "compute_seconds"):
        for part in ("bucket", "sum", "count"):
            assert f"grpo_server_{histogram}_{part}" in text


def test_an_idle_server_is_called_idle(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/server")
    expect(page.locator(".verdict")).to_have_text("idle nothing waits")
    expect(tile(page, "queue")).to_contain_text("0 of 524,288 tokens")
    expect(page.locator(".identity code")).to_have_text(FakeEngine().info.fingerprint)
    expect(page.locator(".identity")).to_contain_text("exact")


def test_rates_are_differences_and_shares_are_of_what_was_seen(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/server")
    expect(page.locator(".verdict")).to_contain_text("idle")
    for _ in range(5):
        score(server)
    expect(tile(page, "scored")).not_to_contain_text(re.compile("[–]|^scored0"))
    expect(tile(page, "computed")).to_contain_text("0.75 scored for each")  # 6 of 8 tokens
    expect(tile(page, "batch fill")).to_contain_text("8 tokens a batch")
    expect(page.locator(".verdict")).to_contain_text("tokens/s over the last 30 s")
    row = page.locator(".server-tables tr", has_text="tokens of a batch").locator("td")
    expect(row).to_have_text(["0–16", "0–16", "5"])


def test_a_held_engine_is_busy_and_a_full_queue_refuses(engine: FakeEngine, open_page: Open) -> None:
    with real_server(engine, max_queue_tokens=40, max_batch_tokens=20) as url, ThreadPoolExecutor(6) as threads:
        page = open_page(f"{url}/ui/server")
        expect(page.locator(".verdict")).to_contain_text("idle")
        engine.hold()
        bodies = [{"groups": [{"prompt": [20 + k] * 9, "completions": [[22] * 9]}]} for k in range(6)]
        answers = [threads.submit(httpx.post, f"{url}/v1/logprobs", json=body, timeout=60) for body in bodies]
        try:
            expect(page.locator(".verdict")).to_have_text(re.compile(r"^refusing queue_full \d in the last 10 s"))
            expect(tile(page, "queue")).to_contain_text("of 40 tokens")
        finally:
            engine.let_go()
        assert {answer.result().status_code for answer in answers} == {200, 429}


def test_refusals_are_told_by_code(engine: FakeEngine, open_page: Open) -> None:
    with real_server(engine) as url:
        page = open_page(f"{url}/ui/server")
        expect(page.locator(".verdict")).to_contain_text("idle")
        for _ in range(3):
            httpx.post(f"{url}/v1/logprobs", content=b"{")
        row = page.locator(".server-tables tr", has_text="unsupported_media_type").locator("td")
        expect(row).to_have_text(["3", "3"])
        expect(page.locator(".verdict")).to_contain_text("idle")  # wrong requests say nothing about the server


def test_it_works_without_a_key(engine: FakeEngine, open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sesame\n")
    with real_server(engine, api_key_file=tmp_path / "keys") as url:
        page = open_page(f"{url}/ui/server", expected=("401",))
        expect(page.locator(".verdict")).to_contain_text("idle")
        expect(page.locator(".identity code")).to_have_text(engine.info.fingerprint)


def test_a_killed_server_is_said_and_its_figures_stay(engine: FakeEngine, open_page: Open) -> None:
    with real_server(engine) as url:
        page = open_page(f"{url}/ui/server", expected=("ERR_CONNECTION",))
        expect(page.locator(".verdict")).to_contain_text("idle")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.locator(".verdict")).to_have_text("no answer")
    expect(page.locator(".identity code")).to_have_text(engine.info.fingerprint)


def test_counters_that_begin_again_give_no_negative_rate(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/server")
    rates = page.evaluate(
        """async () => {
             const {Sample} = await import("/ui/files/pages/server/metrics.js");
             const {columns, now, quantiles, verdict} = await import("/ui/files/pages/server/figures.js");
             const text = (tokens, started) => `process_start_time_seconds ${started}
grpo_server_ready 1.0
grpo_server_scored_tokens_total ${tokens}.0
grpo_server_computed_tokens_total ${tokens}.0
grpo_server_refusals_total{reason="queue_full"} ${tokens / 100}.0
grpo_server_queue_seconds_bucket{le="0.1"} ${tokens}
grpo_server_queue_seconds_bucket{le="1.0"} ${tokens * 2}
grpo_server_queue_seconds_bucket{le="+Inf"} ${tokens * 2}
grpo_server_queue_seconds_count ${tokens * 2}
grpo_server_queue_seconds_sum ${tokens}
`;
             const answers = [[0, 100, 1], [2, 300, 1], [4, 100, 2], [6, 500, 2]];
             const samples = answers.map(([at, n, started]) => new Sample(at, text(n, started)));
             const latest = now(samples);
             const says = verdict(samples, latest);
             return [columns(samples).scored, latest.scored, quantiles(samples)[0], says, latest.codes];
           }"""
    )
    assert rates[0] == [100, None, 200]
    assert rates[1] == 200
    assert rates[2] == {"title": "wait for the first batch", "n": 800, "p50": "0–0.1 s", "p95": "0.1–1 s"}
    assert rates[3] == {"kind": "refusing", "says": "queue_full 4 in the last 10 s"}
    assert rates[4] == [{"code": "queue_full", "ever": 5, "lately": 4}]


def test_a_chart_of_one_moment_shows_the_minute_before_it(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/server")
    shown = page.evaluate(
        """async () => {
             const {moments} = await import("/ui/files/lib/chart.js");
             return [[], [1e9], [1e9, 1e9 + 10], [1e9, 1e9 + 10, 1e9 + 300]].map((x) => moments({data: [x]}));
           }"""
    )
    assert shown == [[None, None], [1e9 - 60, 1e9], [1e9 - 50, 1e9 + 10], [1e9, 1e9 + 300]]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(server: str, open_page: Open, dark: bool, width: int) -> None:
    httpx.post(f"{server}/v1/logprobs", content=b"{")
    score(server)
    page = open_page(f"{server}/ui/server", width=width, dark=dark, bypass_csp=True)
    expect(page.locator(".chart canvas")).to_have_count(6)
    expect(page.locator(".server-tables")).to_contain_text("unsupported_media_type")
    assert axe_finds(page) == []
    assert not overflows(page)
