"""Runs: curves of what is on the disk, followed while it grows, and the samples of a step."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_checks import Open, axe_finds, overflows
from playwright.sync_api import Page, expect
from server_fakes import FakeEngine, real_server

STEPS = 30


def metrics(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "reward/mean": step / 40,
        "kl": 1e-9 if step == 0 else 100.0 if step == 21 else 0.01 * step,
        "policy/grad_norm": 1.0,
        "policy/sampler_gap": 2e-5,
        "completion/ended": None if step == 3 else 0.9,
        "time/step_s": 4.0,
        "time/reference_wait_s": 0.01,
        "time/rollout_s": 1.0,
    }


def group(step: int, number: int) -> dict[str, Any]:
    return {
        "step": step,
        "prompt": f"<img src=x onerror=alert(1)> {number}",
        "prompt_ids": [20, 21],
        "completion_ids": [[22, 23, 24], [25, 26]],
        "completions": ["x", "y"],
        "policy_logprobs": [[-1.5, -14.75, -0.5], [-1, -1]],
        "ref_logprobs": [[-1.25, -2.75, -0.5], [-1, -9]],
        "rewards": [1.0, 0.25],
    }


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, at in (("old", 1000), ("new", 2000)):
        run = tmp_path / name
        run.mkdir()
        lines([metrics(k) for k in range(STEPS)], run / "metrics.jsonl")
        lines([group(k, g) for k in range(STEPS) for g in range(2)], run / "samples.jsonl")
        for file in run.iterdir():
            os.utime(file, (at, at))
    return tmp_path


@pytest.fixture
def url(engine: FakeEngine, runs: Path) -> Iterator[str]:
    with real_server(engine, runs=runs) as address:
        yield address


def lines(records: list[dict[str, Any]], path: Path) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def table(page: Page, title: str) -> list[list[str]]:
    """The table twin of a chart."""
    twin = page.locator("details.twin", has=page.get_by_text(f"of {title}", exact=True))
    if twin.get_attribute("open") is None:
        twin.locator("summary").click()
        twin.locator("tbody tr").first.wait_for()
    return twin.locator("tbody tr").evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.innerText))")


def test_the_latest_run_is_shown_with_each_step_and_its_median(url: str, open_page: Open) -> None:
    page = open_page(f"{url}/ui/runs")
    expect(page.locator(".runs-bar")).to_contain_text("30 steps")
    assert page.locator(".run-choice input:checked").count() == 1
    assert page.locator(".run", has=page.locator("input:checked")).inner_text().strip() == "new"
    kl = table(page, "KL to the reference")
    assert [row[0] for row in kl] == [str(k) for k in range(STEPS)]
    assert kl[21] == ["21", "100", "0.165"]  # the spike stays one point: the median of steps 12 to 21 is 0.165
    assert kl[0][1] == "1e-9"
    assert table(page, "Sampler gap")[0] == ["0", "2e-5", "2e-5"]
    assert table(page, "Ended, and flat groups")[3][1] == "–"
    page.get_by_label("smooth").select_option("1")
    expect(
        page.locator("details.twin", has=page.get_by_text("of KL to the reference", exact=True)).locator("th")
    ).to_have_count(2)


def test_a_file_that_grows_is_followed_and_its_cut_line_waits(url: str, open_page: Open, runs: Path) -> None:
    page = open_page(f"{url}/ui/runs")
    expect(page.locator(".runs-bar")).to_contain_text("30 steps")
    page.evaluate("window.same = document.querySelector('.chart canvas')")
    file = runs / "new" / "metrics.jsonl"
    whole = json.dumps(metrics(31)) + "\n"
    with file.open("a") as out:
        out.write(json.dumps(metrics(30)) + "\n" + whole[:40])
    expect(page.locator(".runs-bar")).to_contain_text("31 steps; a last line is being written, or cut off")
    with file.open("a") as out:
        out.write(whole[40:])
    expect(page.locator(".runs-bar")).to_contain_text("32 steps")
    expect(page.locator(".runs-bar")).not_to_contain_text("cut off")
    assert page.evaluate("window.same === document.querySelector('.chart canvas')")


def test_only_what_is_new_is_asked_for_and_nothing_while_hidden(url: str, open_page: Open, runs: Path) -> None:
    page = open_page(f"{url}/ui/runs")
    expect(page.locator(".runs-bar")).to_contain_text("30 steps")
    size = (runs / "new" / "metrics.jsonl").stat().st_size
    with page.expect_request(lambda request: f"metrics.jsonl?after={size}" in request.url):
        pass
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    page.wait_for_timeout(2600)
    assert asked == []
    lines([metrics(30)], runs / "new" / "metrics.jsonl")
    page.evaluate(hide, False)
    expect(page.locator(".runs-bar")).to_contain_text("31 steps")


def test_a_run_that_is_resumed_is_read_anew(url: str, open_page: Open, runs: Path) -> None:
    page = open_page(f"{url}/ui/runs", expected=("422",))
    expect(page.locator(".runs-bar")).to_contain_text("30 steps")
    lines([metrics(k) for k in range(12)], runs / "draft")
    os.replace(runs / "draft", runs / "new" / "metrics.jsonl")
    expect(page.locator(".runs-bar")).to_contain_text("12 steps")


def test_two_runs_share_charts_and_the_fragment_names_them(url: str, open_page: Open) -> None:
    page = open_page(f"{url}/ui/runs")
    page.get_by_label("old").check()
    expect(page.locator(".chart", has_text="Reward").locator(".legend")).to_have_text("newold")
    expect(page).to_have_url(re.compile("runs=new%2Cold"))
    page.reload()
    expect(page.locator(".chart", has_text="Reward").locator(".legend")).to_have_text("newold")


def test_a_click_on_a_curve_shows_that_steps_samples(url: str, open_page: Open) -> None:
    page = open_page(f"{url}/ui/runs")
    expect(page.locator(".runs-bar")).to_contain_text("30 steps")
    over = page.locator(".chart", has_text="KL to the reference").locator(".u-over")
    box = over.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 21 / 29, box["y"] + box["height"] / 2)
    samples = page.get_by_role("region", name="Samples of step 21 of new")
    expect(samples).to_be_visible()
    expect(page).to_have_url(re.compile("step=21"))
    expect(samples.locator(".prompt")).to_have_text("<img src=x onerror=alert(1)> 0")
    rows = samples.locator("tbody tr")
    assert rows.nth(0).locator("td").all_inner_texts()[:3] == ["1", "3", "12.25"]
    assert rows.nth(1).locator("td").all_inner_texts()[:3] == ["0.25", "2", "-8.00"]
    tokens = rows.nth(0).locator(".tok")
    expect(tokens).to_have_count(3)
    expect(tokens.nth(1)).to_have_attribute("title", "id 23\nreference -2.75\npolicy -14.75\nd 12.0000")
    assert tokens.nth(1).get_attribute("class") == "tok d24 beyond"
    samples.get_by_label("group").select_option("1")
    expect(samples.locator(".prompt")).to_have_text("<img src=x onerror=alert(1)> 1")
    page.keyboard.press("]")
    expect(page.get_by_role("region", name="Samples of step 22 of new")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("region", name="Samples of step 21 of new")).to_have_count(0)


def test_findings_lead_to_their_step(url: str, open_page: Open) -> None:
    page = open_page(f"{url}/ui/runs")
    findings = page.get_by_role("region", name="Findings of new")
    spike = findings.locator("li", has_text="KL spike at step 21")
    expect(spike).to_contain_text("check")
    spike.get_by_role("button", name="21").click()
    expect(page.get_by_role("region", name="Samples of step 21 of new")).to_be_visible()


def test_a_server_that_is_gone_leaves_the_curves(engine: FakeEngine, runs: Path, open_page: Open) -> None:
    with real_server(engine, runs=runs) as url:
        page = open_page(f"{url}/ui/runs", expected=("ERR_CONNECTION",))
        expect(page.locator(".runs-bar")).to_contain_text("30 steps")
    expect(page.get_by_role("alert").first).to_contain_text("The server does not answer")
    assert len(table(page, "KL to the reference")) == STEPS


def test_without_runs_the_page_says_how_to_show_some(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/runs")
    expect(page.locator("main")).to_contain_text("grpo-server --model demo --runs runs")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(url: str, open_page: Open, dark: bool, width: int) -> None:
    page = open_page(f"{url}/ui/runs#runs=new,old&step=21", width=width, dark=dark, bypass_csp=True)
    expect(page.get_by_role("region", name="Findings of old").locator("li", has_text="KL spike")).to_be_visible()
    expect(page.get_by_role("region", name="Samples of step 21 of old").locator(".tok").first).to_be_visible()
    assert axe_finds(page) == []
    assert not overflows(page)
