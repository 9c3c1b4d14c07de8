"""GET /v1/reference tells which tokens a reference knows, so that a foreign tokenizer is not taken for a padded vocabulary."""

from __future__ import annotations

import pytest
from grpo_client import TokenizerIdentity
from grpo_server.engine.contract import Hosted
from server_fakes import FakeEngine, serving
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def tokenizer(*tokens: str, **options: str) -> PreTrainedTokenizerFast:
    vocab = {token: i for i, token in enumerate(tokens)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="a")), **options)


def test_equal_sizes_with_other_tokens_are_told_apart() -> None:
    mine = TokenizerIdentity.of(tokenizer("a", "b", "c"))
    assert mine == TokenizerIdentity.of(tokenizer("a", "b", "c", chat_template="whatever"))
    for other in (tokenizer("a", "b", "d"), tokenizer("a", "c", "b"), tokenizer("a", "b", "c", "d")):
        found = TokenizerIdentity.of(other)
        assert found.fingerprint != mine.fingerprint
    assert mine.tokens == 3


@pytest.mark.anyio
async def test_the_reference_says_so_and_answers_to_scoring_do_not() -> None:
    class Knowing(FakeEngine):
        @property
        def hosted(self) -> Hosted:
            return Hosted(self.info, self.tokenizer, tokenizer_identity=TokenizerIdentity("abc", 99))

    async with serving(Knowing()) as client:
        said = (await client.get("/v1/reference")).json()
        answer = (await client.post("/v1/logprobs", json={"groups": [{"prompt": [1], "completions": [[2]]}]})).json()
    assert (said["tokenizer_fingerprint"], said["tokens"], said["vocab_size"]) == ("abc", 99, 100)
    assert "tokens" not in answer["reference"]
    async with serving(FakeEngine()) as client:
        assert "tokens" not in (await client.get("/v1/reference")).json()
