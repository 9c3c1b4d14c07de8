"""Every bug is found by the rule that is meant for it, and its healthy twin by none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from grpo_client.findings import Finding, Verdict, check, check_metrics, samples_of
from toy_rollouts import END, Toy, record, rollouts

Records = list[dict[str, Any]]


def fired(findings: Sequence[Finding]) -> set[str]:
    return {f.name for f in findings if f.verdict in (Verdict.CHECK, Verdict.LOOK)}


def found(records: Records, *, served: bool = False) -> dict[str, Finding]:
    samples = samples_of(enumerate(records, start=1))
    return {f.name: f for f in check(samples, served=Toy() if served else None)}


def rows(records: Records, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Records:
    """Another column of the same rollouts."""
    return [r | {name: [change(np.array(row)).tolist() for row in r[name]]} for r in records]


def bfloat16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


HEALTHY: Mapping[str, Callable[[], Records]] = {
    "T = 1": rollouts,
    "T = 0.7": lambda: rollouts(temperature=0.7),
    "T = 1.3": lambda: rollouts(temperature=1.3),
    "two completions a prompt": lambda: rollouts(groups=30, of=2),
    "a file without steps": lambda: [{k: v for k, v in r.items() if k != "step"} for r in rollouts()],
    "a later step": lambda: rollouts(step=40),
    **{f"seed {seed}": lambda seed=seed: rollouts(seed=seed, groups=30) for seed in range(2, 8)},
}


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_fires_on_healthy_rollouts(name: str) -> None:
    findings = found(HEALTHY[name](), served=True)
    assert fired(list(findings.values())) == set()
    assert findings["not_the_sampler"].verdict is Verdict.PASSED
    assert findings["same_reference"].verdict is Verdict.PASSED


# name: the records, what must fire, and what else may.
INJECTED: Mapping[str, tuple[Callable[[], Records], set[str], set[str]]] = {
    "raw log-probs of what was sampled at 0.7": (
        lambda: rollouts(temperature=0.7, policy_temperature=1.0),
        {"not_the_sampler", "noise_floor"},
        set(),
    ),
    "log-probs divided by T": (
        lambda: rows(rollouts(), "policy_logprobs", lambda t: t / 0.7),
        {"divided_by_temperature", "not_the_sampler", "noise_floor"},
        set(),
    ),
    "sampled at 0.7, scored at 1": (
        lambda: rollouts(temperature=0.7, ref_temperature=1.0, policy_temperature=0.7),
        {"sharpness", "noise_floor"},
        set(),
    ),
    "sampled at 1.3, scored at 1": (
        lambda: rollouts(temperature=1.3, ref_temperature=1.0, policy_temperature=1.3),
        {"sharpness", "noise_floor"},
        set(),
    ),
    "StableMax": (lambda: rollouts(policy_normalizer="stablemax"), {"not_the_sampler", "noise_floor"}, set()),
    "stale weights": (
        lambda: rollouts(step=30, policy=Toy(seed=5, sharp=2.5)),
        {"not_the_sampler"},
        {"few_tokens", "shifted", "template"},
    ),
    "shifted by one": (
        lambda: rows(rollouts(), "policy_logprobs", lambda t: np.roll(t, 1)),
        {"shifted", "not_the_sampler", "noise_floor"},
        {"few_tokens", "template"},
    ),
    "shifted the other way": (
        lambda: rows(rollouts(), "policy_logprobs", lambda t: np.roll(t, -1)),
        {"shifted", "not_the_sampler", "noise_floor"},
        {"few_tokens", "template"},
    ),
    "rounded to bfloat16": (lambda: rows(rollouts(), "policy_logprobs", bfloat16), {"rounded"}, {"noise_floor"}),
    "rounded to float16": (
        lambda: rows(rollouts(), "policy_logprobs", lambda t: t.astype(np.float16).astype(np.float64)),
        {"rounded"},
        {"noise_floor"},
    ),
    "no template for the reference": (
        lambda: rollouts(ref_prompt=lambda p: p[8:-2]),
        {"template", "noise_floor"},
        {"sharpness"},
    ),
    "no generation prompt": (lambda: rollouts(ref_prompt=lambda p: p[:-1]), {"template", "noise_floor"}, set()),
    "BOS twice": (lambda: rollouts(ref_prompt=lambda p: p[:1] + p), {"noise_floor"}, set()),
    "the last token twice": (lambda: rollouts(ref_prompt=lambda p: p + p[-1:]), {"noise_floor"}, set()),
    "no system turn": (lambda: rollouts(ref_prompt=lambda p: p[6:]), {"noise_floor"}, set()),
}


@pytest.mark.parametrize("bug", INJECTED)
def test_an_injected_bug_is_found(bug: str) -> None:
    made, must, may = INJECTED[bug]
    findings = found(made())
    assert must <= fired(list(findings.values())) <= must | may
    for name in must:
        assert findings[name].verdict is Verdict.CHECK
        assert findings[name].n >= 20


EXPLAINED = {
    "raw log-probs of what was sampled at 0.7": "the policy's temperature is 1",
    "sampled at 0.7, scored at 1": "the policy's temperature is 0.7",
    "sampled at 1.3, scored at 1": "the policy's temperature is 1.3",
    "StableMax": "the policy normalises by StableMax",
    "no template for the reference": "the policy's prompt has the chat template",
    "no generation prompt": "the policy's prompt has a generation prompt",
    "BOS twice": "the policy's prompt lacks its first token",
    "the last token twice": "the policy's prompt lacks its last token",
    "no system turn": "the policy's prompt has the system turn of the template",
}


@pytest.mark.parametrize("bug", EXPLAINED)
def test_scoring_again_names_the_bug(bug: str) -> None:
    findings = found(INJECTED[bug][0](), served=True)
    assert findings["explain"].verdict is Verdict.CHECK
    assert findings["explain"].says.startswith(EXPLAINED[bug] + ":")


def test_a_temperature_between_the_grid_is_found_too() -> None:
    findings = found(rollouts(temperature=0.83, ref_temperature=1.0, policy_temperature=0.83), served=True)
    assert findings["explain"].says.startswith("the policy's temperature is 0.83:")


def test_what_nothing_explains_is_said_so() -> None:
    finding = found(rollouts(policy=Toy(seed=3)), served=True)["explain"]
    assert finding.verdict is Verdict.NEEDS_DATA
    assert "no change that was tried explains the gap" in finding.says


def test_sharpness_needs_nothing_but_ids_and_a_server() -> None:
    records = rollouts(temperature=0.7, ref_temperature=1.0)
    bare = [{k: r[k] for k in ("step", "temperature", "prompt_ids", "completion_ids")} for r in records]
    finding = found(bare, served=True)["sharpness"]
    assert finding.verdict is Verdict.CHECK
    assert finding.figures["mean_excess"] < -0.5
    assert (
        found([{k: v for k, v in r.items() if "logprobs" not in k} for r in rollouts()], served=True)[
            "sharpness"
        ].verdict
        is Verdict.PASSED
    )


def test_a_file_scored_by_another_reference_is_found() -> None:
    records = rows(rollouts(), "ref_logprobs", lambda r: r + 0.01)
    assert found(records, served=True)["same_reference"].verdict is Verdict.CHECK


def test_lost_end_tokens_are_found() -> None:
    healthy = rollouts(groups=30, sampler=_Ending())
    finding = found(healthy)["end_tokens"]
    assert finding.verdict is Verdict.PASSED
    lost = [_without_last(r) if i % 3 == 0 else r for i, r in enumerate(healthy)]
    finding = found(lost)["end_tokens"]
    assert finding.verdict is Verdict.CHECK
    assert finding.figures["lost"] == pytest.approx(10 / 30, abs=0.01)
    # A stop string ends a completion without a token of its own.
    stopped = [r | {"completions": ["done\n"] * 4, "stop": ["\n"]} for r in lost]
    assert found(stopped)["end_tokens"].verdict is Verdict.NEEDS_DATA


def test_an_end_that_the_reference_never_expects_is_found() -> None:
    rare = [
        r | {"ref_logprobs": [[*row[:-1], -14.0] for row in r["ref_logprobs"]]}
        for r in rollouts(groups=30, sampler=_Ending())
    ]
    finding = found(rare)["end_tokens"]
    assert finding.verdict is Verdict.CHECK
    assert finding.figures["median_ref_logprob"] == -14.0


def test_a_handful_of_tokens_is_found() -> None:
    records = rows(rollouts(step=9), "policy_logprobs", lambda t: t + 0.05)
    assert "few_tokens" not in fired(list(found(records).values()))
    for r in records[:3]:
        r["policy_logprobs"][0][0] -= 6.0
    finding = found(records)["few_tokens"]
    assert finding.verdict is Verdict.CHECK
    assert set(finding.tokens[:3]) == {(0, 0), (4, 0), (8, 0)}


def test_text_that_becomes_other_ids_is_found() -> None:
    healthy = rollouts()
    assert found(healthy, served=True)["retokenized"].verdict is Verdict.PASSED
    healthy[0] = record(Toy(), healthy[0]["prompt_ids"], [[9, 4, 5, 9]], 1.0, step=0, rng=np.random.default_rng(0))
    finding = found(healthy, served=True)["retokenized"]
    assert finding.verdict is Verdict.LOOK
    assert finding.tokens == ((0, 1),)


def test_a_reward_for_length_is_found() -> None:
    paid = [r | {"rewards": [float(len(ids)) for ids in r["completion_ids"]]} for r in _ragged()]
    finding = found(paid)["reward_follows_length"]
    assert finding.verdict is Verdict.LOOK
    assert finding.figures["spearman"] == pytest.approx(1.0)
    assert found(_ragged())["reward_follows_length"].verdict is Verdict.PASSED


def test_copies_are_found() -> None:
    copies = [r | {"completion_ids": [[9, 10, END]] * 8} for r in _one_shape(30, 8)]
    assert found(copies)["few_distinct"].verdict is Verdict.LOOK
    assert found(_ragged())["few_distinct"].verdict is Verdict.PASSED


def test_a_phrase_that_is_paid_for_is_found() -> None:
    rng = np.random.default_rng(0)
    plain: Records = []
    for _ in range(40):
        ids = rng.integers(40, 60, size=(6, 5)).tolist()
        t = rng.normal(-2, 0.1, size=(6, 5))
        plain.append(
            {
                "prompt_ids": [1, 2],
                "completion_ids": ids,
                "policy_logprobs": t.tolist(),
                "ref_logprobs": (t + rng.normal(0, 0.1, size=(6, 5))).tolist(),
                "rewards": rng.random(6).tolist(),
                "step": 50,
            }
        )
    assert found(plain)["rewarded_phrases"].verdict is Verdict.PASSED
    for r in plain:
        for s in range(3):  # a trick that the reward falls for, and the reference would not write
            r["completion_ids"][s][1:3] = [300, 301]
            r["ref_logprobs"][s][1:3] = (np.array(r["policy_logprobs"][s][1:3]) - 3).tolist()
            r["rewards"][s] = 1.0 + s
    finding = found(plain)["rewarded_phrases"]
    assert finding.verdict is Verdict.LOOK
    assert "300" in finding.says or "301" in finding.says


def steps(**columns: Any) -> Records:
    return [{"step": i, **{name: value(i) for name, value in columns.items()}} for i in range(60)]


def test_metrics_of_a_healthy_run_pass() -> None:
    records = steps(
        kl=lambda i: 0.01 + 0.001 * (i % 5),
        **{
            "time/reference_wait_s": lambda i: 0.002,
            "time/step_s": lambda i: 1.0,
            "policy/entropy": lambda i: 1.7 - 0.02 * i,
            "reward/flat_groups": lambda i: 0.3,
            "completion/ended": lambda i: 0.95,
        },
    )
    assert {f.verdict for f in check_metrics(records)} == {Verdict.PASSED}


@pytest.mark.parametrize(
    ("name", "columns", "verdict"),
    [
        ("kl_spike", {"kl": lambda i: 1.0 if i == 21 else 0.01}, Verdict.CHECK),
        ("reference_wait", {"time/reference_wait_s": lambda i: 0.2, "time/step_s": lambda i: 1.0}, Verdict.CHECK),
        ("reference_wait", {"time/reference_wait_s": lambda i: 0.07, "time/step_s": lambda i: 1.0}, Verdict.LOOK),
        ("entropy_collapse", {"policy/entropy": lambda i: 1.7 * 0.9**i}, Verdict.CHECK),
        ("flat_groups", {"reward/flat_groups": lambda i: 0.82}, Verdict.LOOK),
        ("cut_completions", {"completion/ended": lambda i: 0.6}, Verdict.LOOK),
    ],
)
def test_metrics_of_a_sick_run_are_found(name: str, columns: Any, verdict: Verdict) -> None:
    findings = {f.name: f for f in check_metrics(steps(**columns))}
    assert findings[name].verdict is verdict
    if name == "kl_spike":
        assert findings[name].steps == (21,)


class _Ending(Toy):
    """Ends after three tokens."""

    def sample(self, prompt: list[int], rng: Any, temperature: float = 1.0, most: int = 24) -> list[int]:
        return [*super().sample(prompt, rng, temperature, 3)[:3], END]


def _without_last(r: dict[str, Any]) -> dict[str, Any]:
    per_token = ("completion_ids", "policy_logprobs", "ref_logprobs", "ref_entropy")
    return r | {name: [row[:-1] for row in r[name]] for name in per_token}


def _one_shape(groups: int, of: int) -> Records:
    return [{"prompt_ids": [1], "completion_ids": [[9, 10, END]] * of} for _ in range(groups)]


def _ragged() -> Records:
    rng = np.random.default_rng(4)
    return [
        {
            "prompt_ids": [1],
            "completion_ids": [rng.integers(8, 400, size=n).tolist() for n in rng.integers(2, 30, size=6)],
            "rewards": rng.random(6).tolist(),
        }
        for _ in range(40)
    ]
