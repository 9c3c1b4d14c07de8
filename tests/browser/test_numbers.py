"""Numbers: every figure on the page is the API's, whatever is dragged, typed or chosen; late answers overtake no later one."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from page_checks import Open, axe_finds, overflows
from playwright.sync_api import Locator, Page, Route, expect

CASES = {
    "plain": [1.2, 4.7, 3.1, 0.5, 2.9],
    "92": [1.2, 92, 3.1, 0.5, 2.9],
    "12": [0, 12, 3, 1, 2],
    "−1000": [-1000, -1001, -1002],
    "equal": [100, 100, 100],
    "−inf": [1, "-inf", 3, 0, 2],
    "all −inf": ["-inf", "-inf", "-inf"],
    "confident": [0, 40],
}
NORMALIZERS = ("softmax", "stablemax", "sparsemax", "entmax15")
FORMS = [(form, dtype) for form in ("naive", "stable") for dtype in ("float16", "bfloat16", "float32")]


def told(server: str, logits: list[Any], **more: Any) -> dict[str, Any]:
    return httpx.post(f"{server}/ui/api/numerics", json={"logits": logits, **more}).raise_for_status().json()


def same(text: str, value: float | str | None) -> bool:
    """Whether what is shown is the number that the API gave, digit by digit, or its word."""
    if value is None or isinstance(value, str):
        return text == (value or "")
    return re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", text) is not None and float(text) == value


def cells(table: Locator) -> list[list[str]]:
    return table.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].slice(1).map(c => c.innerText))"
    )


def expect_bars(page: Page, answer: dict[str, Any]) -> None:
    """Waits until the bars are those of the answer, each value the API's to the last digit."""
    n = len(answer["logits"])
    expected = [[answer["distributions"][name]["p"][i] for name in NORMALIZERS] for i in range(n)]
    page.wait_for_function(
        """(expected) => {
             const rows = [...document.querySelectorAll(".token:not(.head)")];
             const same = (text, value) => typeof value === "string" ? text === value : text !== "" && Number(text) === value;
             return rows.length === expected.length && rows.every((row, i) =>
               [...row.querySelectorAll(".p-bar .value")].every((cell, k) => same(cell.innerText, expected[i][k])));
           }""",
        arg=expected,
    )


@pytest.mark.parametrize("case", CASES)
def test_each_hard_case_shows_the_figures_of_the_api(server: str, open_page: Open, case: str) -> None:
    page = open_page(f"{server}/ui/softmax")
    page.get_by_role("group", name="Hard cases").get_by_role("button", name=case, exact=True).click()
    target = page.locator("input[name=target]").evaluate_all("all => all.findIndex((one) => one.checked)")
    answer = told(server, CASES[case], target=target)
    expect_bars(page, answer)
    table = page.locator("#written-out-table")
    for step in ("p", "logprobs", "gradient", "terms", "logits"):
        page.get_by_role("region", name="Written out", exact=True).get_by_label("show").select_option(step)
        shown = cells(table)
        n = len(answer["logits"])
        for i, row in enumerate(shown[:n]):
            for text, (form, dtype) in zip(row, FORMS, strict=True):
                assert same(text, answer[form][dtype][step][i]), (step, i, form, dtype, text)
        for row, name in zip(shown[n:], ("total", "logsumexp", "loss"), strict=True):
            for text, (form, dtype) in zip(row, FORMS, strict=True):
                assert same(text, answer[form][dtype][name]), (name, form, dtype, text)
    computed = page.get_by_role("region", name="As this server computes it", exact=True)
    for figure in ("logprobs", "gradient", "logit_gradient", "p"):
        computed.get_by_label("show").select_option(figure)
        shown = cells(computed)
        for i, row in enumerate(shown[: len(answer["logits"])]):
            for text, name in zip(row, NORMALIZERS, strict=True):
                assert same(text, answer["distributions"][name][figure][i]), (figure, i, name, text)
        for row, name in zip(shown[-3:], ("entropy", "support", "loss"), strict=True):
            for text, by in zip(row, NORMALIZERS, strict=True):
                assert same(text, answer["distributions"][by][name]), (name, by, text)


def test_what_happens_is_said(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/softmax")
    remarks, hard = page.locator(".remarks"), page.get_by_role("group", name="Hard cases")
    for case, says in {
        "92": "inf / inf is nan",
        "12": "Naive, fp16: a term or the sum overflows",
        "−1000": "0 / 0 is nan",
        "all −inf": "Every token is masked",
        "confident": "softmax collapse",
    }.items():
        hard.get_by_role("button", name=case, exact=True).click()
        expect(remarks).to_contain_text(says)
    hard.get_by_role("button", name="plain", exact=True).click()
    expect(remarks).to_have_text("")


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_another_normalizer_is_written_out(server: str, open_page: Open, normalizer: str) -> None:
    page = open_page(f"{server}/ui/softmax")
    page.get_by_label("normalizer").select_option(normalizer)
    answer = told(server, CASES["plain"], target=2, normalizer=normalizer)
    page.locator("#written-out-table[data-by=" + normalizer + "]").wait_for()
    for i, row in enumerate(cells(page.locator("#written-out-table"))[:5]):
        for text, (form, dtype) in zip(row, FORMS, strict=True):
            assert same(text, answer[form][dtype]["p"][i])


def test_dragging_a_slider_moves_the_field_and_the_bars(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/softmax")
    slider = page.get_by_label("Logit of token 1, slider")
    box = slider.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    for share in (0.6, 0.7, 0.8, 0.9):
        page.mouse.move(box["x"] + share * box["width"], y, steps=5)
    page.mouse.up()
    logit = float(page.get_by_label("Logit of token 1", exact=True).input_value())
    assert 50 < logit < 1000
    expect_bars(page, told(server, [logit, *CASES["plain"][1:]]))
    expect(page).to_have_url(re.compile(rf"logits={logit:g}%2C4.7"))


def test_a_slider_reaches_small_logits_and_a_thousand(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/softmax")
    slider, field = page.get_by_label("Logit of token 1, slider"), page.get_by_label("Logit of token 1", exact=True)
    slider.focus()
    page.keyboard.press("End")
    expect(field).to_have_value("1000")
    page.keyboard.press("Home")
    expect(field).to_have_value("-1000")
    field.fill("0")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert 0 < float(field.input_value()) < 0.01


def test_temperature_mask_and_true_token_reach_the_server(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/softmax")
    page.get_by_label("Temperature T").fill("0.35")
    page.get_by_label("Mask token 2").check()
    page.get_by_label("token 5 is the true one").check()
    answer = told(server, [1.2, "-inf", 3.1, 0.5, 2.9], temperature=0.35, target=4)
    expect_bars(page, answer)
    loss = (
        page.get_by_role("region", name="As this server computes it", exact=True)
        .locator("tr.sum")
        .last.locator("td")
        .first
    )
    assert same(loss.inner_text(), answer["distributions"]["softmax"]["loss"])
    page.get_by_role("button", name="T = 1").click()
    page.get_by_label("Mask token 2").uncheck()
    expect_bars(page, told(server, CASES["plain"]))


def test_tokens_come_and_go(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/softmax")
    page.get_by_role("button", name="Add a token").click()
    expect_bars(page, told(server, [*CASES["plain"], 0]))
    page.get_by_role("button", name="Remove token 2").click()
    expect_bars(page, told(server, [1.2, 3.1, 0.5, 2.9, 0]))
    assert page.locator("input[name=target]").nth(1).is_checked()  # the true one was token 3


def test_a_link_fills_the_page_and_a_second_one_fills_it_anew(server: str, open_page: Open) -> None:
    names = json.dumps([" the", "<b>x</b>", "‮evil"])
    page = open_page(f"{server}/ui/softmax#logits=-0.1,-3.5,-inf&T=0.7&normalizer=sparsemax&y=1&names={names}")
    answer = told(server, [-0.1, -3.5, "-inf"], temperature=0.7, target=1)
    expect_bars(page, answer)
    assert page.locator(".token .name").all_inner_texts() == ["·the", "<b>x</b>", "\\u202eevil"]
    assert page.get_by_label("normalizer").input_value() == "sparsemax"
    page.evaluate("location.hash = 'logits=3,1'")
    expect_bars(page, told(server, [3, 1]))
    page.get_by_role("link", name="Runs", exact=True).click()
    page.go_back()
    expect_bars(page, told(server, [3, 1]))


@pytest.mark.parametrize("logits", ["1,x,2", "nan,1", "inf", "1,,2"])
def test_a_link_that_cannot_be_read_shows_the_plain_row(server: str, open_page: Open, logits: str) -> None:
    page = open_page(f"{server}/ui/softmax#logits={logits}")
    expect_bars(page, told(server, CASES["plain"]))


def test_a_late_answer_does_not_overtake_a_later_one(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/softmax")
    expect_bars(page, told(server, CASES["plain"]))
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/ui/api/numerics", hold_the_first)
    field = page.get_by_label("Logit of token 1", exact=True)
    field.fill("7")
    page.wait_for_timeout(100)
    field.fill("8")
    latest = told(server, [8, *CASES["plain"][1:]])
    expect_bars(page, latest)
    with page.expect_response("**/ui/api/numerics"):
        held[0].continue_()
    page.wait_for_timeout(100)
    expect_bars(page, latest)


def test_many_moves_are_few_questions(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/softmax")
    expect_bars(page, told(server, CASES["plain"]))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    frames = page.evaluate(
        """async () => {
             const field = document.querySelector(".token input[type=number]");
             let frames = 0, run = true;
             const count = () => { frames++; if (run) requestAnimationFrame(count); };
             requestAnimationFrame(count);
             for (let k = 0; k < 200; k++) {
               field.value = k / 100;
               field.dispatchEvent(new Event("input", {bubbles: true}));
               if (k % 10 === 0) await new Promise(requestAnimationFrame);
             }
             run = false;
             return frames;
           }"""
    )
    expect_bars(page, told(server, [1.99, *CASES["plain"][1:]]))
    assert len(asked) <= frames + 3


def test_a_server_that_is_gone_is_said_and_asked_again(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui/softmax", expected=("ERR_FAILED", "Failed to load"))
    expect_bars(page, told(server, CASES["plain"]))
    page.route("**/ui/api/numerics", lambda route: route.abort())
    page.get_by_label("Logit of token 1", exact=True).fill("2")
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    page.unroute("**/ui/api/numerics")
    page.get_by_label("Logit of token 1", exact=True).fill("3")
    expect_bars(page, told(server, [3, *CASES["plain"][1:]]))
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(server: str, open_page: Open, dark: bool, width: int) -> None:
    page = open_page(f"{server}/ui/softmax#logits=1,-inf,92", width=width, dark=dark, bypass_csp=True)
    expect_bars(page, told(server, [1, "-inf", 92]))
    assert axe_finds(page) == []
    assert not overflows(page)
