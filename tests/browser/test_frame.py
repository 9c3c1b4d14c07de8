"""The frame around the pages: moving between them, the key, what is waited out, themes, and what a reader cannot see."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from page_checks import Open, axe_finds, overflows
from playwright.sync_api import expect
from server_fakes import FakeEngine, real_server

PAGES = {"/ui": "Scores", "/ui/softmax": "Numbers", "/ui/runs": "Runs", "/ui/server": "Server"}


@pytest.mark.parametrize("path", PAGES)
def test_each_address_shows_its_page_and_who_answers(server: str, open_page: Open, path: str) -> None:
    page = open_page(server + path)
    expect(page.locator("nav a[aria-current=page]")).to_have_text(PAGES[path])
    expect(page.locator("main h1").first).to_be_attached()
    expect(page.locator(".status")).to_contain_text("fake b5d54c39e666 float32 exact v1")
    assert page.title().startswith(PAGES[path])


def test_moving_between_pages_loads_nothing_anew_and_the_back_button_goes_back(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui")
    page.evaluate("window.same = true")
    page.get_by_role("link", name="Runs", exact=True).click()
    expect(page).to_have_url(f"{server}/ui/runs")
    page.get_by_role("link", name="Server", exact=True).click()
    page.go_back()
    expect(page.locator("nav a[aria-current=page]")).to_have_text("Runs")
    page.go_back()
    expect(page.locator("nav a[aria-current=page]")).to_have_text("Scores")
    assert page.evaluate("window.same")


def test_a_key_is_asked_for_kept_between_pages_and_forgotten_on_reload(
    engine: FakeEngine, open_page: Open, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("correct horse\n")
    with real_server(engine, api_key_file=keys) as url:
        page = open_page(f"{url}/ui", expected=("401",))
        field = page.get_by_label("API key")
        expect(field).to_have_attribute("type", "password")
        field.fill("wrong")
        field.press("Enter")
        expect(page.locator("form.key")).to_contain_text("is not an API key of this server")
        field.fill("correct horse")
        field.press("Enter")
        expect(page.locator(".status")).to_contain_text("fake")
        page.get_by_role("link", name="Numbers", exact=True).click()
        expect(page.locator("form.key")).to_have_count(0)
        kept = page.evaluate("JSON.stringify([location.href, document.cookie, {...localStorage}, {...sessionStorage}])")
        assert "horse" not in kept
        page.reload()
        expect(page.get_by_label("API key")).to_be_focused()
        page.close()  # before the server goes, which it would complain of


def test_a_refusal_that_passes_is_counted_down_and_asked_again(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/runs", expected=("429", "503"))
    expect(page.locator(".status")).to_contain_text("fake")
    refusals = iter([(429, "queue_full"), (503, "loading")])

    def refuse(route) -> None:  # type: ignore[no-untyped-def]
        if (refusal := next(refusals, None)) is None:
            route.continue_()
            return
        body = {"error": {"message": f"not now: {refusal[1]}", "code": refusal[1], "param": None, "type": "x"}}
        route.fulfill(status=refusal[0], headers={"Retry-After": "1"}, json=body)

    page.route("**/v1/reference", refuse)
    asked = page.evaluate_handle("import('/ui/files/lib/api.js').then(({ask}) => ({answer: ask('v1/reference')}))")
    expect(page.locator(".notice.wait")).to_contain_text("not now: queue_full")
    expect(page.locator(".notice.wait")).to_contain_text("not now: loading")
    assert page.evaluate("async ({answer}) => (await answer).status", asked) == 200
    expect(page.locator(".notice.wait")).to_have_count(0)


def test_the_theme_follows_the_system_and_the_switch(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/runs", dark=True)
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(15, 18, 22)"
    page.get_by_role("button", name="Theme: auto").click()
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.get_by_role("button", name="Theme: light").click()
    page.reload()
    page.get_by_role("button", name="Theme: dark").wait_for()
    assert page.evaluate(background) == "rgb(15, 18, 22)"


def test_question_mark_lists_the_keys_but_not_inside_a_field(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/runs")
    page.locator("main h1").wait_for()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("show these keys")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_and_a_phone_shows_the_whole_width(
    server: str, open_page: Open, path: str, dark: bool
) -> None:
    page = open_page(server + path, width=390, dark=dark, bypass_csp=True)
    page.locator("main h1").first.wait_for(state="attached")
    expect(page.locator(".status")).to_contain_text("fake")
    assert axe_finds(page) == []
    assert not overflows(page)


def test_what_cannot_be_seen_is_written_out(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/runs")
    cases = {
        " a b ": "·a b·",
        "\n": "⏎",
        "\u202eabc": "\\u202eabc",
        "a\u200bb\u00adc": "a\\u200bb\\u00adc",
        "\x1b[31m": "\\u001b[31m",
        "\U000e0041": "\\u{e0041}",
        "\u0301": "◌\u0301",
        "\u2028\u00a0": "\\u2028\\u00a0",
        "日本": "日本",
    }
    shown = page.evaluate(
        "async (texts) => { const {shown} = await import('/ui/files/lib/shown.js'); return texts.map(shown); }",
        list(cases),
    )
    assert dict(zip(cases, shown, strict=True)) == cases


def test_numbers_are_printed_as_the_api_prints_them(server: str, open_page: Open) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([-rng.exponential(3, 500), 10.0 ** rng.uniform(-9, 9, 200), [0.0, 1.0, -2.5]])
    values = values.astype(np.float32)
    page = open_page(f"{server}/ui/runs")
    printed = page.evaluate(
        "async (values) => { const {exact} = await import('/ui/files/lib/format.js'); return values.map(exact); }",
        values.astype(np.float64).tolist(),
    )
    for value, text in zip(values, printed, strict=True):
        assert np.float32(text) == value
        digits = re.sub(r"e.*|[-.]|^-?0\.0*", "", text).strip("0")
        assert len(digits) <= len(re.sub(r"e.*|[-.]|^-?0\.0*", "", str(value)).strip("0")), (text, value)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_colour_of_a_token_leaves_its_text_readable(server: str, open_page: Open, dark: bool) -> None:
    page = open_page(f"{server}/ui/runs", dark=dark)
    page.locator("main h1").wait_for()
    names = [f"d{i}" for i in range(25)] + [f"s{i}" for i in range(13)]
    pairs = page.evaluate(
        """(names) => names.map((name) => {
             const span = document.createElement("span");
             span.className = `tok ${name}`;
             document.body.append(span);
             const {color, backgroundColor} = getComputedStyle(span);
             return [color, backgroundColor];
           })""",
        names,
    )
    for name, (ink, ground) in zip(names, pairs, strict=True):
        assert contrast(ink, ground) > 4.5, (name, ink, ground)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, "contrast ratio", of two rgb() colours."""

    def luminance(colour: str) -> float:
        channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
