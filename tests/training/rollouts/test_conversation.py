"""Completions of several turns: what the environment is told, what its words become, and where a completion ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from grpo_training.config import ConfigError, EnvironmentConfig, EnvironmentFailed
from grpo_training.rollouts.conversation import converse
from grpo_training.rollouts.environment import Environments
from grpo_training.rollouts.rollout import Rollout
from torch import Tensor
from transformers import PreTrainedTokenizerFast

EOS = 2
Scripted = Callable[..., Any]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], str]:
    """Makes a class importable, and gives its name for the configuration."""

    def named(cls: type) -> str:
        module = ModuleType("an_environment")
        module.Own = cls  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, "an_environment", module)
        return "an_environment:Own"

    return named


class Line:
    """Draws what it is told to: for each turn the ids of each row, over and over. An end is EOS."""

    def __init__(self, *turns: Sequence[Sequence[int]]) -> None:
        self.turns = iter(turns)
        self.asked: list[dict[str, Any]] = []

    def __call__(
        self,
        contexts: Sequence[Sequence[int]],
        *,
        group_size: int,
        seed: int,
        places: Tensor | None,
        limits: Sequence[int] | None,
    ) -> Rollout:
        self.asked.append({"contexts": [list(c) for c in contexts], "seed": seed, "limits": limits, "places": places})
        rows = [list(row) for row in next(self.turns)]
        assert len(rows) == len(contexts) * group_size
        rows = [row[:n] for row, n in zip(rows, limits or [99] * len(rows), strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
        ended = torch.tensor([row[-1] == EOS for row in rows])
        return Rollout([list(c) for c in contexts], group_size, ids, mask, -ids.float(), ids.float() / 10, ended)


def talk(
    draw: Line,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    *,
    group_size: int = 1,
    prompts: int = 1,
    room: int = 20,
    **options: Any,
) -> Rollout:
    environments = Environments(EnvironmentConfig(factory=name, **options), tokenizer)
    asked = [SimpleNamespace(entry={"answer": str(k)}, where=f"row {k}") for k in range(prompts)]
    try:
        return converse(
            draw,
            environments,
            [[5 + k] for k in range(prompts)],
            asked,
            group_size=group_size,
            max_new_tokens=room,
            seed=3,
            device=torch.device("cpu"),
        )
    finally:
        environments.close()


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class Echo:
    """Says the row's answer once, then nothing."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.closed = False

    def reset(self, entry: dict[str, Any]) -> None:
        self.entry = entry

    def step(self, text: str) -> str | None:
        self.heard.append(text)
        return f"<{self.entry['answer']}" if len(self.heard) == 1 else None

    def close(self) -> None:
        self.closed = True


def test_turns_of_both_are_one_completion(tokenizer: PreTrainedTokenizerFast, own: Callable[[type], str]) -> None:
    a, b = ids_of(tokenizer, "ab")
    answer = ids_of(tokenizer, "<1")  # the first is no token of this vocabulary: its id is that of <unk>
    draw = Line([[a, EOS], [b, b, EOS], [a], [b, EOS]], [[b, EOS], [a, a, EOS], [b, b]])
    rollout = talk(draw, tokenizer, own(Echo), group_size=2, prompts=2, room=8)
    assert rollout.completions()[1] == [[a], [b, EOS, *answer, b, b]]
    assert rollout.completions()[0][0] == [a, EOS, *ids_of(tokenizer, "<0"), b, EOS]
    assert rollout.ended.tolist() == [True, True, False, False]
    assert rollout.written() == [
        [[True, True, False, False, True, True], [True, True, True, False, False, True, True, True]],
        [[True], [True, True, False, False, True, True]],
    ]
    theirs = ~rollout.loss_mask
    assert not rollout.logprobs[theirs].any()
    assert rollout.entropy is not None
    assert not rollout.entropy[theirs].any()
    assert rollout.logprobs[3].tolist() == [-float(b), -2.0, 0.0, 0.0, -float(b), -float(b), 0.0, 0.0]
    # the prompts of the first turn are shared; afterwards every completion has a context of its own, and less room
    assert draw.asked[0]["contexts"] == [[5], [6]]
    assert draw.asked[0]["limits"] is None
    assert draw.asked[1]["contexts"][0] == [5, a, EOS, *ids_of(tokenizer, "<0")]
    assert draw.asked[1]["limits"] == [4, 3, 4]
    assert draw.asked[1]["places"].tolist() == [0, 1, 3]
    assert draw.asked[0]["seed"] == 3 != draw.asked[1]["seed"]
    first, _, cut, _ = rollout.episodes
    assert [(turn.role, turn.text) for turn in first.turns] == [("assistant", "a"), ("tool", "<0"), ("assistant", "b")]
    assert [turn.role for turn in cut.turns] == ["assistant"]
    assert first.environment.heard == ["a", "b"]
    assert cut.environment.heard == []
    assert all(episode.environment.closed for episode in rollout.episodes)


def test_what_is_resampled_and_chosen_keeps_its_episodes(
    tokenizer: PreTrainedTokenizerFast, own: Callable[[type], str]
) -> None:
    name = own(Echo)
    turns = [[[7, EOS]] * 4, [[8, EOS]] * 4]
    mine, other = (talk(Line(*turns), tokenizer, name, group_size=2, prompts=2) for _ in range(2))
    mixed = mine.replaced([1], other.chosen([0]))
    assert [e is m for e, m in zip(mixed.episodes, mine.episodes, strict=True)] == [True, True, False, False]
    assert mixed.episodes[2] is other.episodes[0]
    assert [p.episodes for p in mixed.portions(2)] == [mixed.episodes[:2], mixed.episodes[2:]]


class Endless:
    def step(self, text: str) -> str:
        return "ab"


@pytest.mark.parametrize(
    ("options", "room", "length"),
    [
        ({"max_turns": 2}, 20, 6),  # it would go on, and what it says last leads nowhere
        ({"max_turns": 1}, 20, 2),
        ({"max_turns": 9}, 9, 9),  # the third turn is cut
        ({"max_turns": 9}, 8, 6),  # two more tokens would fit, and no turn behind them
        ({"max_turns": 9}, 7, 6),
        ({"max_turns": 2, "max_observation_tokens": 1}, 20, 5),
        ({"max_turns": 2, "max_observation_tokens": 0}, 20, 4),
    ],
)
def test_limits_on_turns_and_tokens(
    tokenizer: PreTrainedTokenizerFast,
    own: Callable[[type], str],
    options: dict[str, int],
    room: int,
    length: int,
) -> None:
    rollout = talk(Line(*[[[7, EOS]]] * 9), tokenizer, own(Endless), room=room, **options)
    assert rollout.lengths.tolist() == [length]
    assert rollout.ended.tolist() == [False]
    assert rollout.loss_mask[0, length - 1]


def test_messages_go_through_the_chat_template(tokenizer: PreTrainedTokenizerFast, own: Callable[[type], str]) -> None:
    class Tool:
        said = False

        def step(self, text: str) -> list[dict[str, str]] | None:
            was, self.said = self.said, True
            return None if was else [{"role": "tool", "content": "abc"}, {"role": "user", "content": "d"}]

    rollout = talk(Line([[7, EOS]], [[8, EOS]]), tokenizer, own(Tool), room=99, max_observation_tokens=2)
    [[ids]] = rollout.completions()
    assert "".join(tokenizer.convert_ids_to_tokens(ids[2:-2])) == "\ntool:ab\nuser:d\nassistant:"
    [episode] = rollout.episodes
    assert [(t.role, t.text, t.cut) for t in episode.turns[1:3]] == [("tool", "ab", True), ("user", "d", False)]


def test_a_token_that_the_template_would_repeat_stands_once(
    tokenizer: PreTrainedTokenizerFast, own: Callable[[type], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tool:
        said = False

        def step(self, text: str) -> dict[str, str] | None:
            was, self.said = self.said, True
            return None if was else {"content": "x"}

    template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}</s>\n{% endfor %}assistant:"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    rollout = talk(Line([[7, EOS]], [[8, EOS]]), tokenizer, own(Tool), room=99)
    [[ids]] = rollout.completions()
    assert "".join(tokenizer.convert_ids_to_tokens(ids[1:-2])) == "</s>\ntool:x</s>\nassistant:"


def test_what_reset_says_stands_before_the_first_turn(
    tokenizer: PreTrainedTokenizerFast, own: Callable[[type], str]
) -> None:
    class Opens:
        def reset(self, seed: int, **row: Any) -> str:
            self.seed = seed
            return f"a{row['answer']}"

        def step(self, text: str) -> None: ...

    rollout = talk(Line([[7, EOS], [8, EOS]]), tokenizer, own(Opens), group_size=2)
    assert rollout.written() == [[[False, False, True, True]] * 2]
    assert rollout.completions()[0][0][:2] == ids_of(tokenizer, "a0")
    seeds = [episode.environment.seed for episode in rollout.episodes]
    again = talk(Line([[7, EOS], [8, EOS]]), tokenizer, own(Opens), group_size=2)
    assert seeds[0] != seeds[1]
    assert seeds == [episode.environment.seed for episode in again.episodes]


def test_coroutines_run_at_once(tokenizer: PreTrainedTokenizerFast, own: Callable[[type], str]) -> None:
    import asyncio

    class Meets:
        """Answers when all four are there: one after the other they would wait forever."""

        here: Iterator[int] = iter(range(1, 5))
        all_here: asyncio.Event | None = None

        async def step(self, text: str) -> None:
            cls = type(self)
            cls.all_here = cls.all_here or asyncio.Event()
            if next(cls.here) == 4:
                cls.all_here.set()
            await cls.all_here.wait()

    rollout = talk(Line([[7, EOS]] * 4), tokenizer, own(Meets), group_size=4, timeout=60)
    assert rollout.ended.all()


class Broken:
    def step(self, text: str) -> str:
        raise KeyError("no such tool")


class Slow:
    async def step(self, text: str) -> str:
        import asyncio

        await asyncio.Event().wait()
        return ""


class Babbles:
    def step(self, text: str) -> Any:
        return 7


class NoRow:
    def reset(self, entry: dict[str, Any]) -> None:
        raise ValueError("an empty board")

    def step(self, text: str) -> None: ...


class Fills:
    def reset(self) -> str:
        return "a" * 30

    def step(self, text: str) -> None: ...


@pytest.mark.parametrize(
    ("cls", "options", "told"),
    [
        (Broken, {}, r"an_environment:Own\.step \(row 0, turn 1\): KeyError: 'no such tool'"),
        (Slow, {"timeout": 0.01}, r"an_environment:Own\.step \(row 0, turn 1\): it took longer than 0\.01 s"),
        (Babbles, {}, r"step \(row 0, turn 1\): it must give None, a text, or messages"),
        (NoRow, {}, r"reset \(row 0\): ValueError: an empty board"),
        (Fills, {}, r"\(row 0\) has 30 tokens, and rollout\.max_new_tokens=20 leaves the policy none"),
    ],
)
def test_a_failure_names_environment_row_and_turn(
    tokenizer: PreTrainedTokenizerFast, own: Callable[[type], str], cls: type, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(EnvironmentFailed, match=told):
        talk(Line([[7, EOS]]), tokenizer, own(cls), **options)


class Needy:
    def __init__(self, board: str) -> None: ...

    def step(self, text: str) -> None: ...


@pytest.mark.parametrize(
    ("cls", "options", "told"),
    [
        (Needy, {}, "Own.*at start.*board"),
        (Needy, {"arguments": {"bord": "x"}}, "bord"),
        (dict, {}, r"no method step\(text\)"),
        (Endless, {"timeout": 1.0}, "rollout.environment.timeout: .* no coroutine function"),
    ],
)
def test_what_cannot_be_used_is_refused_at_start(
    tokenizer: PreTrainedTokenizerFast, own: Callable[[type], str], cls: type, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        Environments(EnvironmentConfig(factory=own(cls), **options), tokenizer)


@pytest.mark.parametrize("name", ["nowhere:Own", "json:Own", "json", ":Own"])
def test_a_class_that_is_not_there_is_refused(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.environment: "):
        Environments(EnvironmentConfig(factory=name), tokenizer)
