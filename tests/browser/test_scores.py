"""The page Scores: every way in, what it shows of them, and what it does when the server says no."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpo_client.protocol import ReferenceInfo
from page_checks import Open, axe_finds, overflows
from playwright.sync_api import Page, expect
from server_fakes import CURSED, FakeEngine, real_server

SCRIPT = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'


class Roomy(FakeEngine):
    """The fake reference with room for long texts."""

    @property
    def info(self) -> ReferenceInfo:
        return super().info.model_copy(update={"max_length": 8192})


@pytest.fixture
def engine() -> FakeEngine:
    return Roomy()


def record(step: int = 0, size: int = 4, tokens: int = 8, seed: int = 0, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng([seed, step])
    r = -rng.exponential(1.0, (size, tokens)).astype(np.float32)
    t = (r + rng.normal(0, 0.3, r.shape)).astype(np.float32)
    return {
        "step": step,
        "prompt": f"Question {step}",
        "prompt_ids": [20, 21 + step % 70],
        "completions": [f"answer {step} {g}" for g in range(size)],
        "completion_ids": rng.integers(20, 90, (size, tokens)).tolist(),
        "rewards": [float(g % 2) for g in range(size)],
        "policy_logprobs": [[float(str(x)) for x in row] for row in t],
        "ref_logprobs": [[float(str(x)) for x in row] for row in r],
        **more,
    }


def written(folder: Path, records: list[dict[str, Any]], name: str = "samples.jsonl", cut: int = 0) -> Path:
    text = "".join(json.dumps(one) + "\n" for one in records)
    path = folder / name
    path.write_text(text[: len(text) - cut], encoding="utf-8")
    return path


def drop(page: Page, path: Path) -> None:
    """What dragging a file over the page and letting it go does."""
    page.locator(".drop").wait_for()
    transfer = page.evaluate_handle(
        "([name, text]) => { const t = new DataTransfer(); t.items.add(new File([text], name)); return t; }",
        [path.name, path.read_text(encoding="utf-8")],
    )
    page.locator(".drop").dispatch_event("drop", {"dataTransfer": transfer})


def opened(page: Page, path: Path) -> None:
    drop(page, path)
    page.locator(".columns").wait_for()


def pairs(page: Page) -> dict[str, str]:
    """The token panel's figures by name."""
    names = page.locator(".token dt").all_inner_texts()
    return dict(zip(names, page.locator(".token dd").all_inner_texts(), strict=True))


def typed(page: Page, prompt: str, *completions: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for g, text in enumerate(completions):
        if g:
            page.get_by_role("button", name="Another completion").click()
        page.get_by_label(f"Completion {g + 1}").fill(text)
    page.get_by_role("button", name="Score", exact=True).click()
    page.locator(".columns").wait_for()


def test_what_was_typed_is_scored_and_shown_as_the_api_gives_it(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui")
    typed(page, "What is it?", "This.", "That!")
    expect(page.locator(".completion")).to_have_count(2)
    expect(page.locator(".token .best li").first).to_be_visible()
    groups = [{"prompt": "What is it?", "completions": ["This.", "That!"]}]
    asked = {"groups": groups, "return": ["entropy", "logsumexp", "rank"], "top_k": 5}
    answer = page.request.post(f"{server}/v1/logprobs", data=asked).json()["groups"][0]
    shown = pairs(page)
    g = 0 if page.locator(".completion.on").evaluate("e => [...e.parentNode.children].indexOf(e)") == 0 else 1
    i = int(shown["position"].split()[0]) - 1
    assert np.float32(shown["reference r"]) == np.float32(answer["logprobs"][g][i])
    assert shown["reference r"] == str(np.float32(answer["logprobs"][g][i]))
    assert shown["entropy"] == str(np.float32(answer["entropy"][g][i]))
    assert shown["log-sum-exp"] == str(np.float32(answer["logsumexp"][g][i]))
    assert shown["rank"] == str(answer["rank"][g][i])
    assert shown["id"] == str(answer["completions"][g][i])
    percents = page.locator(".token .best .number").all_inner_texts()
    assert percents[:5] == [f"{100 * np.exp(x):.1f} %" for x in answer["top_logprobs"][g][i]]


def test_the_demo_sentence_is_one_click_away(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui")
    page.get_by_role("button", name="Try the demo sentence").click()
    expect(page.locator(".completion")).to_have_count(4)
    expect(page.locator(".prompt")).to_have_text("The capital of France is")


def test_chat_and_ids_are_other_ways_to_type(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui")
    page.get_by_label("Given as").select_option("ids")
    page.get_by_label("Prompt ids").fill("[20, 21]")
    page.get_by_label("Completion 1").fill("30 31 x")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("no token id")
    page.get_by_label("Completion 1").fill("30 31 32")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator(".tok")).to_have_count(3)
    page.get_by_role("button", name="Open other").click()
    page.get_by_label("Given as").select_option("chat")
    page.get_by_role("textbox", name="Messages").fill('[{"role": "user", "content": "2 + 2?"}]')
    page.get_by_label("Completion 1").fill("4")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator(".prompt")).to_contain_text("2 + 2?")


def test_a_refusal_stands_beside_the_form(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui", expected=("422",))
    page.get_by_label("Given as").select_option("ids")
    page.get_by_label("Prompt ids").fill("20")
    page.get_by_label("Completion 1").fill("30 1000")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("the vocabulary has 100")


def test_a_dropped_file_is_shown_with_its_findings(server: str, open_page: Open, tmp_path: Path) -> None:
    page = open_page(f"{server}/ui")
    opened(page, written(tmp_path, [record(k, cut_off=None) for k in range(5)] + [record(5)], cut=30))
    expect(page.locator(".opened")).to_contain_text("5 groups, 20 completions, 160 tokens; its last line is cut off")
    expect(page.locator(".findings h1")).to_be_visible()
    expect(page.locator(".findings li").first).to_be_attached()
    expect(page.locator(".rows .window .row")).to_have_count(20)
    heads = [head.split()[0] for head in page.get_by_role("grid").get_by_role("columnheader").all_inner_texts()]
    assert heads == ["step", "#", "reward", "tok", "KL", "max", "completion"]


def test_d_and_k3_are_those_of_the_file(server: str, open_page: Open, tmp_path: Path) -> None:
    one = record(3)
    page = open_page(f"{server}/ui")
    opened(page, written(tmp_path, [one]))
    page.evaluate("location.hash = 'seq=1&tok=2'")
    expect(page.locator(".token dd").first).to_have_text("3 of 8")
    shown = pairs(page)
    r, t = one["ref_logprobs"][1][2], one["policy_logprobs"][1][2]
    assert (shown["reference r"], shown["policy t"]) == (str(r), str(t))
    assert float(shown["d = r − t"]) == pytest.approx(r - t, rel=1e-6)
    assert float(shown["k3"]) == pytest.approx(np.expm1(r - t) - (r - t), rel=6e-3)


def test_keys_walk_tokens_completions_steps_and_outliers(server: str, open_page: Open, tmp_path: Path) -> None:
    records = [record(k) for k in range(3)]
    records[1]["policy_logprobs"][2][4] = records[1]["ref_logprobs"][2][4] - 6
    page = open_page(f"{server}/ui")
    opened(page, written(tmp_path, records))
    page.evaluate("location.hash = 'seq=0&tok=0&sort=step%2B'")
    position = page.locator(".token dd").first

    def state() -> dict[str, str]:
        return dict(pair.split("=") for pair in page.url.partition("#")[2].split("&"))

    expect(position).to_have_text("1 of 8")
    page.keyboard.press("ArrowRight")
    expect(position).to_have_text("2 of 8")
    page.keyboard.press("End")
    expect(position).to_have_text("8 of 8")
    page.keyboard.press("ArrowDown")
    assert (state()["seq"], state()["tok"]) == ("1", "7")
    page.keyboard.press("]")
    expect(page.locator("#group-title")).to_have_text("Group of step 1")
    page.keyboard.press("[")
    expect(page.locator("#group-title")).to_have_text("Group of step 0")
    for _ in range(20):
        page.keyboard.press("n")
        page.wait_for_timeout(20)
        if (state()["seq"], state()["tok"]) == ("6", "4"):
            break
    assert (state()["seq"], state()["tok"]) == ("6", "4")
    expect(page.locator(".token")).to_contain_text(re.compile(r"d = r − t\s*6"))
    page.keyboard.press("x")
    expect(page.locator(".token")).to_contain_text(re.compile(r"d = t − r\s*-6"))
    page.keyboard.press("c")
    expect(page.get_by_label("Colour")).to_have_value("r")
    page.keyboard.press("/")
    page.keyboard.type("reward=1 nx")
    assert page.locator("#filter").input_value() == "reward=1 nx"


def test_the_list_filters_and_sorts(server: str, open_page: Open, tmp_path: Path) -> None:
    page = open_page(f"{server}/ui")
    opened(page, written(tmp_path, [record(k) for k in range(10)]))
    count = page.locator("section.list [role=status]")
    page.locator("#filter").fill("reward<1 step>=7")
    expect(count).to_have_text("6 of 40")
    page.locator("#filter").fill("answer 3")
    expect(count).to_have_text("13 of 40")  # both words: the four of step 3, and the fourth of the nine others
    page.locator("#filter").fill("colour>3")
    expect(page.locator("section.list [role=alert]")).to_contain_text("filter by step, reward")
    page.locator("#filter").fill("")
    page.get_by_role("columnheader", name="step").get_by_role("button").click()
    expect(page.locator(".rows .window .row").first.locator(".cell").first).to_have_text("9")
    page.get_by_role("columnheader", name="step").get_by_role("button").click()
    expect(page.locator(".rows .window .row").first.locator(".cell").first).to_have_text("0")


def test_a_finding_shows_its_tokens_and_the_back_button_shows_all(server: str, open_page: Open, tmp_path: Path) -> None:
    records = [record(k) for k in range(8)]
    records[4]["policy_logprobs"][1][3] = records[4]["ref_logprobs"][1][3] - 9
    page = open_page(f"{server}/ui")
    opened(page, written(tmp_path, records))
    show = page.locator(".findings li", has_text="carry").get_by_role("button", name=re.compile("^show"))
    show.click()
    expect(page).to_have_url(re.compile("seq=17"))
    expect(page.locator(".token dd").first).to_have_text("4 of 8")
    assert page.locator("section.list [role=status]").inner_text() != "32"
    page.go_back()
    expect(page.locator("section.list [role=status]")).to_have_text("32")


def test_what_the_file_lacks_is_scored_and_another_temperature_compared(
    server: str, open_page: Open, tmp_path: Path
) -> None:
    one = {name: value for name, value in record(0).items() if not name.endswith("logprobs")}
    page = open_page(f"{server}/ui")
    opened(page, written(tmp_path, [one]))
    expect(page.locator(".token")).to_contain_text("reference r")
    assert "policy t" not in page.locator(".token").inner_text()
    page.locator(".compare summary").click()
    page.get_by_label("This server at T").fill("0.7")
    page.get_by_role("button", name="Score the other side").click()
    expect(page.locator(".compare summary")).to_contain_text("this server at T = 0.7, softmax")
    page.evaluate("location.hash = 'seq=2&tok=5'")
    expect(page.locator(".token dd").first).to_have_text("6 of 8")
    message = {"groups": [{"prompt": one["prompt_ids"], "completions": one["completion_ids"]}]}
    at = {
        T: page.request.post(f"{server}/v1/logprobs", data=message | {"temperature": T}).json()["groups"][0][
            "logprobs"
        ][2][5]
        for T in (1.0, 0.7)
    }
    shown = pairs(page)
    assert (shown["reference r"], shown["other side t"]) == tuple(str(np.float32(at[T])) for T in (1.0, 0.7))


def test_unknown_columns_can_be_named(server: str, open_page: Open, tmp_path: Path) -> None:
    lines = [
        {"q": "Why?", "said": "Because.", "logp": [-0.5], "r": 1.0},
        {"q": "Why?", "said": "So.", "logp": [-0.25], "r": 0.0},
    ]
    page = open_page(f"{server}/ui")
    drop(page, written(tmp_path, lines))
    form = page.get_by_role("form", name="Fields of the file")
    form.get_by_label("completion, text").select_option("said")
    form.get_by_label("prompt, text").select_option("q")
    form.get_by_label("reward").select_option("r")
    form.get_by_role("button", name="Read it so").click()
    expect(page.locator(".completion")).to_have_count(2)  # one group, because the prompt is the same
    expect(page.locator(".prompt")).to_have_text("Why?")


def test_the_bundle_shows_the_same_again(server: str, open_page: Open, tmp_path: Path) -> None:
    page = open_page(f"{server}/ui", accept_downloads=True)
    opened(page, written(tmp_path, [record(k) for k in range(2)]))
    page.evaluate("location.hash = 'seq=3&tok=1'")
    expect(page.locator(".token .best li").first).to_be_visible()
    before = pairs(page)
    page.locator(".export summary").click()
    saved = {}
    for name in ("Bundle", "Sequences, CSV", "Tokens, CSV", "Group, PNG"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        saved[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[name])
    assert saved["Group, PNG"].read_bytes().startswith(b"\x89PNG")
    assert len(saved["Tokens, CSV"].read_text().splitlines()) == 1 + 2 * 4 * 8
    head, first, *_ = saved["Sequences, CSV"].read_text().splitlines()
    assert (head.split(",")[:3], len(first.split(","))) == (["step", "completion", "reward"], 9)
    page.get_by_role("button", name="Open other").click()
    opened(page, saved["Bundle"])
    page.evaluate("location.hash = 'seq=3&tok=1'")
    expect(page.locator(".token dd").first).to_have_text("2 of 8")
    assert pairs(page) == before


def test_a_shared_address_brings_the_text_and_nothing_else(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui")
    page.get_by_label("Prompt", exact=True).fill("Grüße, 世界")
    page.get_by_label("Completion 1").fill(SCRIPT)
    page.get_by_role("button", name="Share with text").click()
    page.wait_for_url("**/ui#text=*")
    assert "script" not in page.url
    other = open_page(page.url)
    expect(other.get_by_label("Prompt", exact=True)).to_have_value("Grüße, 世界")
    expect(other.get_by_label("Completion 1")).to_have_value(SCRIPT)


def test_a_script_in_a_completion_stays_text(server: str, open_page: Open, tmp_path: Path) -> None:
    page = open_page(f"{server}/ui")
    one = record(0, prompt=SCRIPT, completions=[SCRIPT, f"\u202e{SCRIPT}", "c", "d"])
    page.route("**/ui/api/pieces", lambda route: route.fulfill(json=spelled(route.request.post_data_json, SCRIPT)))
    opened(page, written(tmp_path, [one], name="<img src=x onerror=alert(1)>.jsonl"))
    expect(page.locator(".prompt")).to_have_text(SCRIPT)
    expect(page.locator(".completion.on .tok").first).to_contain_text("onerror")
    expect(page.locator(".rows .window")).to_contain_text("\\u202e<img")
    assert page.evaluate("window.hit") is None
    assert page.locator("main img, main script").count() == 0


def spelled(asked: dict[str, Any], text: str) -> dict[str, Any]:
    """An answer of /ui/api/pieces in which the first id of each sequence is the whole text."""
    length = len(text.encode())
    return {
        "sequences": [
            {"text": text, "offsets": [0, *[length] * (len(ids) - 1)][: len(ids)]} for ids in asked["sequences"]
        ]
    }


def test_another_reference_than_in_the_file_is_said_with_both_fingerprints(
    server: str, open_page: Open, tmp_path: Path
) -> None:
    one = {name: value for name, value in record(0).items() if name != "ref_logprobs"} | {"fingerprint": "ab" * 32}
    page = open_page(f"{server}/ui", expected=("409",))
    opened(page, written(tmp_path, [one]))
    notice = page.locator(".notice.bad")
    expect(notice).to_contain_text("Another reference than in the file")
    expect(notice).to_contain_text("abababababab")
    expect(notice).to_contain_text("b5d54c39e666")
    page.unroute_all()
    notice.get_by_role("button").click()
    expect(page.locator(".token")).to_contain_text("policy t")
    expect(notice).to_have_count(0)


def test_scores_that_are_not_finite_are_hatched(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui")
    page.get_by_label("Given as").select_option("ids")
    page.get_by_label("Prompt ids").fill("20 21")
    page.get_by_label("Completion 1").fill(f"30 {CURSED} 31")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator(".tok.nonfinite")).to_have_count(1)
    page.locator(".tok.nonfinite").click()
    expect(page.locator(".token")).to_contain_text("not finite")


def test_scoring_says_how_far_it_is_and_can_be_cancelled(engine: FakeEngine, open_page: Open) -> None:
    engine.hold()
    with real_server(engine) as url:
        page = open_page(f"{url}/ui")
        page.get_by_role("button", name="Try the demo sentence").click()
        under = page.get_by_role("group", name="Under way")
        expect(under).to_contain_text("scoring")
        expect(under).to_contain_text(re.compile(r"\d s"))
        under.get_by_role("button", name="Cancel").click()
        expect(under).to_have_count(0)
        expect(page.locator(".columns")).to_be_visible()
        page.close()  # before the server goes, which it would complain of


def test_a_server_that_is_gone_is_said(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui", expected=("net::ERR_FAILED",))
    page.locator(".typed").wait_for()
    page.route("**/v1/logprobs", lambda route: route.abort())
    page.get_by_role("button", name="Try the demo sentence").click()
    expect(page.get_by_role("alert")).to_contain_text("does not answer")


def test_explaining_asks_the_server_again(server: str, open_page: Open, tmp_path: Path) -> None:
    page = open_page(f"{server}/ui")
    opened(page, written(tmp_path, [record(0)]))
    page.get_by_role("button", name="Explain by re-scoring").click()
    expect(page.get_by_role("button", name="Explain again")).to_be_visible()


def test_the_token_goes_to_the_page_of_numbers_with_its_best_logits(server: str, open_page: Open) -> None:
    page = open_page(f"{server}/ui")
    page.get_by_role("button", name="Try the demo sentence").click()
    link = page.get_by_role("link", name="Open in Numbers")
    target = link.get_attribute("href") or ""
    path, _, fragment = target.partition("#")
    assert path == "/ui/softmax"
    logits = dict(pair.split("=") for pair in fragment.split("&"))["logits"].split("%2C")
    assert len([float(x) for x in logits]) == 5
    link.click()
    expect(page.locator("nav a[aria-current=page]")).to_have_text("Numbers")
    page.go_back()
    expect(page.locator(".completion")).to_have_count(4)  # nothing was lost


@pytest.fixture
def full(server: str, open_page: Open, tmp_path: Path) -> Any:
    """Opens the page with a file in it, its findings and a token's panel."""

    def shown(**how: Any) -> Page:
        page = open_page(f"{server}/ui", **how)
        opened(page, written(tmp_path, [record(k) for k in range(6)]))
        expect(page.locator(".token .best li").first).to_be_visible()
        expect(page.locator(".findings summary").first).to_be_attached()
        return page

    return shown


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_and_nothing_hangs_over_the_edge(full: Any, dark: bool, width: int) -> None:
    page = full(dark=dark, width=width, bypass_csp=True)
    for summary in page.locator("summary").all():
        summary.click()
    assert axe_finds(page) == []
    assert not overflows(page)


def test_forced_colours_keep_every_sign(full: Any) -> None:
    page = full(forced_colors="active", bypass_csp=True)
    assert page.evaluate("matchMedia('(forced-colors: active)').matches")
    assert axe_finds(page) == []


def test_five_thousand_tokens_are_drawn_and_walked(server: str, open_page: Open, tmp_path: Path) -> None:
    page = open_page(f"{server}/ui")
    opened(page, written(tmp_path, [record(0, size=1, tokens=5000)]))
    expect(page.locator(".tok")).to_have_count(5000)
    page.keyboard.press("End")
    expect(page.locator(".token dd").first).to_have_text("5000 of 5000")
    page.keyboard.press("c")
    expect(page.locator(".tok.s1, .tok.s2").first).to_be_attached()


def test_of_ten_thousand_samples_a_few_rows_are_in_the_document(server: str, open_page: Open, tmp_path: Path) -> None:
    page = open_page(f"{server}/ui")
    opened(page, written(tmp_path, [record(k, tokens=4) for k in range(2500)]))
    expect(page.locator(".opened")).to_contain_text("10,000 completions")
    rows = page.locator("[role=row]")
    assert rows.count() < 60
    assert page.get_by_role("grid").get_attribute("aria-rowcount") == "10001"
    page.get_by_role("grid").focus()
    page.keyboard.press("End")
    expect(page.locator("[role=row][aria-selected=true]")).to_have_attribute("aria-rowindex", "10001")
    assert rows.count() < 60
