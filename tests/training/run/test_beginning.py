"""What is found out before the first step: where the run is written, whose tokens are scored, and what a resume is asked."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from grpo_client import TokenizerIdentity
from grpo_training.config import CheckpointError, ConfigError, TrainConfig
from grpo_training.models.loading import LoadedModel
from grpo_training.report.metrics import read_records
from grpo_training.rollouts.generation import sample
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.rollout import Rollout
from grpo_training.run.beginning import shared_vocabulary
from grpo_training.run.loop import train
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from ..conftest import EOS, TinyReference

MakeConfig = Callable[..., TrainConfig]
MORE = 64


@pytest.fixture
def padded(tiny: LlamaForCausalLM) -> LlamaForCausalLM:
    """The tiny model with rows that no token has, as likely as any other."""
    model = copy.deepcopy(tiny)
    model.resize_token_embeddings(tiny.config.vocab_size + MORE, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[-MORE:] *= 40
    return model


def test_ids_that_the_reference_lacks_have_no_probability(tiny: LlamaForCausalLM, padded: LlamaForCausalLM) -> None:
    size = tiny.config.vocab_size
    asked = {"group_size": 32, "max_new_tokens": 8, "temperature": 1.0, "eos_ids": frozenset({EOS}), "seed": 3}
    drawn = sample(padded, [[5, 6, 7]], **asked)
    assert int(drawn.ids.max()) >= size  # it would, and the reference could not score it
    kept = sample(padded, [[5, 6, 7]], **asked, vocab_size=size)
    plain = sample(tiny, [[5, 6, 7]], **asked)
    assert torch.equal(kept.ids, plain.ids)
    torch.testing.assert_close(kept.logprobs, plain.logprobs, atol=1e-5, rtol=1e-5)
    greedy = sample(padded, [[5, 6, 7]], **asked | {"temperature": 0}, vocab_size=size)
    assert int(greedy.ids.max()) < size


@pytest.mark.parametrize("fused", [True, False])
def test_the_policy_is_a_distribution_over_the_shared_ids(
    tiny: LlamaForCausalLM, padded: LlamaForCausalLM, ragged: Rollout, fused: bool
) -> None:
    mine, plain = Policy(padded), Policy(tiny)
    assert mine.fused
    mine.fused = plain.fused = fused
    assert (mine.logprobs(ragged) - plain.logprobs(ragged)).abs().max() > 0.1
    mine.vocab_size = tiny.config.vocab_size
    for ours, theirs in zip(mine.scores(ragged, entropies=True), plain.scores(ragged, entropies=True), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert mine.max_logit(ragged) == pytest.approx(plain.max_logit(ragged), rel=1e-5)
    mine.logprobs(ragged).sum().backward()
    assert padded.get_output_embeddings().weight.grad[-MORE:].abs().max() == 0


def test_a_padded_policy_trains_against_its_unpadded_reference(
    padded: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    make_config: MakeConfig,
    reference_server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    padded.save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")
    config = make_config(
        reference_server.url,
        model={"name": str(tmp_path / "padded")},
        eval={"every": 1, "prompts": 2},
        trainer={"steps": 2},
    )
    train(config)
    [said] = [r.message for r in caplog.records if r.name == "grpo_training.run.beginning"]
    assert "a vocabulary of 144 and the reference one of 80" in said
    first = read_records(config.trainer.output / "metrics.jsonl")[0]
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert first["policy/sampler_gap"] < 1e-4


def test_a_tokenizer_with_more_tokens_than_the_reference_is_refused(
    padded: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    make_config: MakeConfig,
    reference_server,
    tmp_path: Path,
    tiny_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    padded.save_pretrained(tmp_path / "grown")
    grown = AutoTokenizer.from_pretrained(tiny_path)
    grown.add_tokens([f"<{i}>" for i in range(MORE)])
    grown.save_pretrained(tmp_path / "grown")
    with pytest.raises(
        ConfigError, match="144 ids, 144 of them in its tokenizer, but the reference has a vocabulary of 80"
    ):
        train(make_config(reference_server.url, model={"name": str(tmp_path / "grown")}))
    # The reference may be the larger one: it can score all that the policy has.
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert shared_vocabulary(LoadedModel(padded, tokenizer, frozenset()), 200) is None
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def of_file(make: MakeConfig, url: str, path: Path, **trainer: object) -> TrainConfig:
    config = make(url, trainer={"checkpoint_every": 1, **trainer})
    task = config.task.model_copy(update={"name": None, "file": path, "kwargs": {}})
    return config.model_copy(update={"task": task})


def test_a_resume_is_asked_the_same_questions(make_config: MakeConfig, reference_server, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [json.dumps({"question": f"{i}+1?", "answer": i + 1}) + "\n" for i in range(5)]
    path.write_text("".join(rows))
    train(of_file(make_config, reference_server.url, path, steps=1))
    state = tmp_path / "run" / "checkpoints" / "step-000001" / "state.json"
    assert len(json.loads(state.read_text())["data"]["task"]) == 64
    path.write_text("".join(rows).replace('"4+1?"', '"4+9?"'))
    with pytest.raises(CheckpointError, match="the data has changed since the checkpoint was written: task"):
        train(of_file(make_config, reference_server.url, path, steps=2), resume=True)
    path.write_text("".join(rows))
    assert train(of_file(make_config, reference_server.url, path, steps=2), resume=True)["steps"] == 2


def test_a_new_run_in_an_old_directory_is_not_taken_up_from_the_old_one(
    make_config: MakeConfig, reference_server, tmp_path: Path
) -> None:
    """Killed before its first checkpoint, it begins again; it does not go on from what it was to overwrite."""
    train(make_config(reference_server.url, trainer={"steps": 4, "checkpoint_every": 4}))

    class Killed(Exception):
        pass

    class Kill:
        def started(self, config: TrainConfig, first_step: int, reference: str | None) -> None:
            self.first_step = first_step

        def stepped(self, step: int, report: object) -> None:
            if step == 1:
                raise Killed

        def saved(self, path: Path) -> None: ...

    config = make_config(reference_server.url, trainer={"steps": 6, "checkpoint_every": 4})
    with pytest.raises(Killed):
        train(config, overwrite=True, observer=Kill())
    watcher = Kill()
    with pytest.raises(Killed):
        train(config, resume=True, observer=watcher)
    assert watcher.first_step == 0
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_places_that_cannot_be_written(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output, says in (("file", "is a file, not a directory"), ("file/run", "cannot write into .*: Not a directory")):
        with pytest.raises(ConfigError, match=rf"trainer\.output: .*{says}"):
            train(make_config(trainer={"output": str(tmp_path / output)}))


def test_a_run_does_not_replace_what_it_reads(make_config: MakeConfig, tiny_path: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_path).save_pretrained(tmp_path / "run" / "model")
    with pytest.raises(ConfigError, match=r"model\.name=.* lies where this run writes"):
        train(make_config(model={"name": str(tmp_path / "run" / "model")}))


def test_a_reference_with_another_tokenizer_is_refused_before_the_first_step(
    make_config: MakeConfig, reference_server: TinyReference, tokenizer: PreTrainedTokenizerFast
) -> None:
    """It tells a digest of its tokens. Without one, texts are compared."""
    config = make_config(reference_server.url, trainer={"steps": 1})
    vocab = tokenizer.get_vocab()
    names = sorted(vocab, key=vocab.__getitem__)
    vocab[names[9]], vocab[names[12]] = vocab[names[12]], vocab[names[9]]
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="<unk>")))
    plain = reference_server.info
    for told in (TokenizerIdentity.of(other), None):
        reference_server.tokenizer = other
        digest = {"tokenizer_fingerprint": told.fingerprint, "tokens": told.tokens} if told else {}
        reference_server.info = plain.model_copy(update=digest)
        with pytest.raises(
            ConfigError, match=r"the reference \(tiny\) has another tokenizer .* id 9 .* Serve the model"
        ):
            train(config)
        assert not reference_server.requests
        assert not (config.trainer.output / "metrics.jsonl").exists()


@pytest.mark.parametrize("role", ["reference", "teacher"])
def test_a_digest_alone_tells_tokenizers_apart(
    make_config: MakeConfig,
    reference_server: TinyReference,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
    role: str,
) -> None:
    """The server spells no ids: an equal digest is enough, and another one is refused with both sizes."""
    sections = {"loss": {"beta": 0.0}, "distillation": {"teachers": reference_server.url}} if role == "teacher" else {}
    config = make_config(reference_server.url, trainer={"steps": 1}, **sections)
    mine = TokenizerIdentity.of(tokenizer)
    same = {"tokenizer_fingerprint": mine.fingerprint, "tokens": mine.tokens}
    reference_server.info = reference_server.info.model_copy(update=same | {"tokenizer_fingerprint": "0" * 64})
    who = "the reference" if role == "reference" else "teacher default"
    with pytest.raises(ConfigError, match=rf"{who} .* {mine.tokens} tokens, and the policy {mine.tokens}, .* Serve"):
        train(config)
    reference_server.info = reference_server.info.model_copy(update=same)
    train(config)
    assert "tokenizer" not in caplog.text
