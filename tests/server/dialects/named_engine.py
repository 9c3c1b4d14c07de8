"""A reference whose figures and tokenizer depend on its name, so that an answer shows who computed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from bigram_engine import STATES, BigramEngine
from grpo_client.protocol import ReferenceInfo
from grpo_server.engine.contract import BatchScores
from server_fakes import PATIENCE, VOCAB, FakeTokenizer


class NamedTokenizer(FakeTokenizer):
    """Ids and strings of its own; the calls in its two lists are made once, before it reads or writes."""

    def __init__(self, name: str) -> None:
        self.eos_token = f"</{name}>"
        self._name = name
        self.before_encode: list[Callable[[], Any]] = []
        self.before_decode: list[Callable[[], Any]] = []

    def ids(self, text: str) -> list[int]:
        return [1, *(20 + (ord(c) + ord(self._name)) % 60 for c in text)]

    def word(self, token: int) -> str:
        return f"{self._name}{token} "

    def __call__(self, text: str | list[str], *, add_special_tokens: bool, **_: Any) -> dict[str, Any]:
        assert isinstance(text, str)
        while self.before_encode:
            self.before_encode.pop()()
        return {"input_ids": self.ids(text)[not add_special_tokens :]}

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        while self.before_decode:
            self.before_decode.pop()()
        return "".join(map(self.word, token_ids))


class NamedEngine(BigramEngine):
    def __init__(self, name: str = "A") -> None:
        super().__init__()
        self._name = name
        self.before_compute: list[Callable[[], Any]] = []
        self.holding = False
        self._adopt()

    def compute(self, batch: Any) -> BatchScores:
        while self.before_compute:
            self.before_compute.pop()()
        if self.holding:
            self._entered.release()
            assert self._open.wait(PATIENCE)
        return super().compute(batch)

    def _adopt(self) -> None:
        self._table = table(self._name)
        self.tokenizer = NamedTokenizer(self._name)

    def swap(self, name: str) -> ReferenceInfo:
        super().swap(name)
        self._adopt()
        return self.info


def table(name: str) -> np.ndarray:
    return np.random.default_rng(ord(name)).normal(0, 3, (STATES, VOCAB))


def logprobs_of(name: str, ids: Sequence[int], start: int = 1) -> list[float]:
    """What the reference of that name gives the tokens from position start on."""
    return NamedEngine(name).logprobs(ids, start=start)
