"""Several references of one server: the page Server shows each of them, and the page Scores asks the one that is chosen."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from grpo_client.protocol import Group, ScoreRequest
from page_checks import Open, axe_finds, overflows
from playwright.sync_api import Page, expect
from server_fakes import FakeEngine, expected, fingerprint, real_server

ADMIN = {"Authorization": "Bearer root"}
IDS = [20, 21, 22]


@pytest.fixture
def several(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that hosts a, b, and x, an adapter of b."""
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    engine.served = "a"
    with real_server(engine, model=("a=fake", "b=second")) as url:
        told = {"name": "x", "source": "lora", "base": "b"}
        httpx.post(f"{url}/v1/references", json=told, headers=ADMIN).raise_for_status()
        yield url


def table(page: Page) -> list[list[str]]:
    rows = page.locator(".references tbody tr").all()
    return [[cell.inner_text() for cell in row.locator("th, td").all()] for row in rows]


def change(url: str, **asked: Any) -> None:
    httpx.post(f"{url}/admin/reference", json=asked, headers=ADMIN, timeout=30).raise_for_status()


def test_the_page_server_shows_each(several: str, open_page: Open) -> None:
    page = open_page(f"{several}/ui/server")
    expect(page.locator(".references tbody tr")).to_have_count(3)
    names = page.locator(".references tbody th b").all_inner_texts()
    assert names == ["a", "b", "x"]
    prints = page.locator(".references code").all_inner_texts()
    assert prints == [fingerprint("fake"), fingerprint("second"), fingerprint("second+lora")]
    assert [row[1:3] + row[4:] for row in table(page)] == [
        ["serves", "1", "float32, exact, packed", "yes", base] for base in ("–", "–", "b")
    ]
    expect(page.locator(".references tbody th").first).to_have_text("a default")
    expect(page.get_by_role("button", name="copy the fingerprint of b")).to_be_visible()


def test_it_follows_what_is_replaced_loaded_and_dropped(several: str, engine: FakeEngine, open_page: Open) -> None:
    page = open_page(f"{several}/ui/server")
    rows = page.locator(".references tbody tr")
    expect(rows).to_have_count(3)
    change(several, model="next", reference="b", hold=True)
    expect(rows.nth(1)).to_contain_text("serves; the next is up and waits for the word")
    httpx.post(f"{several}/admin/reference/commit", json={"version": 2, "reference": "b"}, headers=ADMIN)
    expect(rows.nth(1).locator("code")).to_have_text(fingerprint("next"))
    expect(rows.nth(1).locator("td").first).to_have_text("serves")
    engine.hold_change()
    later = {"name": "late", "source": "third", "wait": False}
    assert httpx.post(f"{several}/v1/references", json=later, headers=ADMIN).status_code == 202
    expect(page.locator(".references .loads")).to_contain_text("being loaded: load")
    engine.let_go()
    expect(rows.nth(3)).to_contain_text("late")
    for name in ("late", "x"):
        httpx.delete(f"{several}/v1/references/{name}", headers=ADMIN).raise_for_status()
    expect(rows).to_have_count(2)
    failed = {"name": "bad", "source": "missing"}
    assert httpx.post(f"{several}/v1/references", json=failed, headers=ADMIN).status_code == 422
    expect(page.locator(".references")).to_contain_text("The load of bad failed: the model cannot be used")


def test_a_lone_reference_has_no_list(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/server")
    expect(page.locator(".identity code")).to_have_text(fingerprint("fake"))
    assert page.locator(".references").count() == 0
    page.get_by_role("link", name="Scores", exact=True).click()
    page.get_by_label("Prompt", exact=True).wait_for()
    assert which(page).count() == 0


def which(page: Page) -> Any:
    return page.get_by_role("combobox", name="Reference", exact=True)


def own(name: str) -> str:
    """The first score of IDS behind [5, 6], as the page writes it."""
    request = ScoreRequest((Group(np.array([5, 6], np.int32), (np.array(IDS, np.int32),)),))
    return str(expected(request, fingerprint(name))[0])


def typed(page: Page) -> None:
    page.get_by_label("Given as").select_option("ids")
    page.get_by_label("Prompt ids").fill("5 6")
    page.get_by_label("Completion 1").fill(" ".join(map(str, IDS)))
    page.get_by_role("button", name="Score", exact=True).click()
    page.locator(".columns").wait_for()


def first_token(page: Page, figure: str = "reference r") -> Any:
    """That figure of it, whenever it comes."""
    page.get_by_role("listbox").get_by_role("option").first.click()
    return page.locator(".token dt", has_text=re.compile(f"^{figure}$")).locator("xpath=following-sibling::dd[1]")


def test_the_chosen_one_scores_and_the_address_says_so(several: str, open_page: Open) -> None:
    page = open_page(f"{several}/ui")
    which(page).select_option("b")
    expect(page).to_have_url(re.compile(r"#ref=b$"))
    typed(page)
    expect(page.locator(".status")).to_contain_text("b")
    expect(first_token(page)).to_have_text(own("second"))
    which(page).select_option("x")
    expect(first_token(page)).to_have_text(own("second+lora"))
    expect(page.locator(".status")).to_contain_text("x")
    which(page).select_option("a")
    expect(first_token(page)).to_have_text(own("fake"))
    expect(page).not_to_have_url(re.compile(r"ref="))
    which(page).select_option("b")
    page.get_by_role("link", name="Numbers", exact=True).click()
    page.get_by_role("link", name="Scores", exact=True).click()
    expect(which(page)).to_have_value("b")
    expect(page).to_have_url(re.compile(r"ref=b"))


def test_a_link_asks_the_one_that_it_names_and_an_unknown_one_is_said(several: str, open_page: Open) -> None:
    page = open_page(f"{several}/ui#ref=b")
    expect(which(page)).to_have_value("b")
    typed(page)
    expect(first_token(page)).to_have_text(own("second"))
    lost = open_page(f"{several}/ui#ref=gone", expected=("404",))
    expect(which(lost)).to_have_value("gone")
    typed(lost)
    expect(lost.get_by_role("alert")).to_contain_text("'gone' is not here; this server hosts 'a', 'b', 'x'")


def test_the_other_side_may_be_another_reference(several: str, open_page: Open) -> None:
    page = open_page(f"{several}/ui")
    typed(page)
    page.locator(".compare summary").click()
    page.get_by_label("Other side").select_option("b")
    page.get_by_label("at T").fill("1")
    page.get_by_role("button", name="Score the other side").click()
    expect(page.locator(".compare summary")).to_contain_text("b at T = 1, softmax")
    page.locator(".compare summary").click()
    expect(first_token(page, "other side t")).to_have_text(own("second"))


def test_a_file_of_another_reference_names_the_one_that_scored_it(
    several: str, open_page: Open, tmp_path: Path
) -> None:
    record = {
        "prompt_ids": [5, 6],
        "completion_ids": [IDS],
        "temperature": 1.0,
        "fingerprint": fingerprint("second"),
    }
    (tmp_path / "lines.jsonl").write_text(json.dumps(record) + "\n")
    page = open_page(f"{several}/ui", expected=("409",))
    page.locator("input[type=file]").set_input_files(tmp_path / "lines.jsonl")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Another reference than in the file")
    page.get_by_role("button", name="Score with b, which did").click()
    expect(first_token(page)).to_have_text(own("second"))
    expect(which(page)).to_have_value("b")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(several: str, open_page: Open, dark: bool, width: int) -> None:
    page = open_page(f"{several}/ui/server", width=width, dark=dark, bypass_csp=True)
    expect(page.locator(".references tbody tr")).to_have_count(3)
    assert axe_finds(page) == []
    assert not overflows(page)
    page.get_by_role("link", name="Scores", exact=True).click()
    typed(page)
    assert axe_finds(page) == []
    assert not overflows(page)
