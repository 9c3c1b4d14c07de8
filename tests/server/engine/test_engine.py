"""The engine behind its contract: extras, mixed questions, memory, swapping, fingerprints."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from grpo_client.protocol import EXTRAS, NORMALIZERS, Status
from grpo_numerics import score_rows
from grpo_server.engine import EngineConfig, OutOfMemory, Piece, load_engine
from grpo_server.engine.config import mode_on
from grpo_server.engine.device import Cpu
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.fingerprint import fingerprint
from grpo_server.engine.loading import Loaded, choose_dtype
from grpo_server.engine.memory import halve
from transformers import AutoModelForCausalLM, LlamaConfig

VOCAB = 151


def llama(seed=0, **overrides):
    torch.manual_seed(seed)
    sizes = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    config = LlamaConfig(**{**sizes, "vocab_size": VOCAB, "max_position_embeddings": 128, **overrides})
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.fixture
def engine():
    return TorchEngine(EngineConfig(model="tiny"), Loaded(llama(), None, None))


def score(engine, pieces):
    return engine.compute(engine.prepare(pieces)).pieces


def ids(*tokens):
    return np.array(tokens, np.int32)


def test_mixed_questions_in_one_batch_answer_as_alone(engine):
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, VOCAB, 9, dtype=np.int32)
    completions = tuple(rng.integers(0, VOCAB, n, dtype=np.int32) for n in (4, 0, 6))
    asked = tuple(rng.integers(0, VOCAB, (len(c), 3), dtype=np.int32) for c in completions)
    pieces = [
        Piece(prompt, completions, 1.0),
        Piece(prompt, completions, 0.5, extras=frozenset({"entropy", "rank", "logsumexp"})),
        Piece(prompt, completions, 1.7, "stablemax", top_k=4),
        Piece(prompt[:1], completions, 1.0, token_ids=asked),
    ]
    together = score(engine, pieces)
    for piece, mine in zip(pieces, together, strict=True):
        [alone] = score(engine, [piece])
        assert set(mine.extras) == set(alone.extras)
        np.testing.assert_allclose(mine.logprobs, alone.logprobs, rtol=0, atol=2e-5)
        for name, values in mine.extras.items():
            assert len(values) == 10
            np.testing.assert_allclose(values, alone.extras[name], rtol=0, atol=2e-5)
    assert set(together[1].extras) == {"entropy", "rank", "logsumexp"}
    assert together[2].extras["top_ids"].shape == (10, 4)
    assert together[3].extras["token_logprobs"].shape == (10, 3)


def test_empty_batches_and_equal_completions(engine):
    [nothing] = score(engine, [Piece(ids(1, 2), (ids(), ids()), 1.0)])
    assert len(nothing.logprobs) == 0
    assert list(nothing.status) == [Status.OK, Status.OK]
    [twice] = score(engine, [Piece(ids(1, 2), (ids(5, 6, 7), ids(5, 6, 7)), 1.0)])
    assert np.array_equal(twice.logprobs[:3], twice.logprobs[3:])
    # equal completions go through the model once, and their last token not at all
    assert engine.prepare([Piece(ids(1, 2), (ids(5, 6, 7), ids(5, 6, 7)), 1.0)]).tokens == 4


@pytest.mark.parametrize("tier", ["packed", "cache", "plain"])
def test_ids_as_they_came_over_the_wire_may_not_be_written_to(tier):
    engine = TorchEngine(EngineConfig(model="tiny", tier=tier), Loaded(llama(), None, None))
    prompt, first, second, asked = (
        np.frombuffer(ids(*row).tobytes(), np.int32) for row in ((1, 2), (3, 4, 5), (6,), range(4))
    )
    for piece in (Piece(prompt, (first, second), 1.0), Piece(prompt, (second,), 1.0, token_ids=(asked.reshape(1, 4),))):
        [scores] = score(engine, [piece])
        writable = [ids(*c.tolist()) for c in piece.completions]
        [same] = score(engine, [Piece(ids(1, 2), tuple(writable), 1.0, token_ids=piece.token_ids)])
        assert np.array_equal(scores.logprobs, same.logprobs)


def test_nonfinite_weights_mark_only_what_they_touch():
    model = llama(tie_word_embeddings=False)
    broken = VOCAB - 1
    engine = TorchEngine(EngineConfig(model="tiny"), Loaded(model, None, None))
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = torch.nan  # a token whose hidden state is lost
    good, bad = Piece(ids(1, 2), (ids(3, 4),), 1.0), Piece(ids(1, broken), (ids(3, 4), ids(5)), 1.0)
    first, second = score(engine, [good, bad])
    assert list(first.status) == [Status.OK]
    assert list(second.status) == [Status.NONFINITE, Status.NONFINITE]
    assert np.isfinite(first.logprobs).all()


def out_of_memory_above(engine, tokens):
    """The device has room for so many tokens: what torch raises beyond that is raised."""
    rows = engine._forward.rows

    def limited(batch):
        if batch.tokens > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows(batch)

    engine._forward.rows = limited


def test_out_of_memory_halves_the_batch_and_answers_all_the_same(engine):
    rng = np.random.default_rng(2)
    pieces = [
        Piece(rng.integers(0, VOCAB, 5, dtype=np.int32), tuple(rng.integers(0, VOCAB, (4, 6), dtype=np.int32)), 1.0)
        for _ in range(5)
    ]
    expected = score(engine, pieces)
    out_of_memory_above(engine, 12)  # less than one piece of 5 + 4 * 5 tokens
    answer = engine.compute(engine.prepare(pieces))
    assert answer.splits > 0
    for mine, want in zip(answer.pieces, expected, strict=True):
        np.testing.assert_allclose(mine.logprobs, want.logprobs, rtol=0, atol=2e-5)


def test_what_cannot_fit_is_refused_and_the_next_is_answered(engine):
    out_of_memory_above(engine, 20)
    with pytest.raises(OutOfMemory):
        score(engine, [Piece(ids(*range(40)), (ids(1, 2),), 1.0)])
    assert len(score(engine, [Piece(ids(1), (ids(1, 2),), 1.0)])[0].logprobs) == 2


def test_other_errors_are_not_swallowed(engine):
    def fails(batch):
        raise RuntimeError("size mismatch")

    engine._forward.rows = fails
    with pytest.raises(RuntimeError, match="size mismatch"):
        score(engine, [Piece(ids(1), (ids(1, 2),), 1.0)])


def test_split_keeps_token_ids_with_their_completions():
    piece = Piece(
        ids(1), (ids(1), ids(2, 3), ids(4)), 1.0, token_ids=tuple(np.zeros((n, 2), np.int32) for n in (1, 2, 1))
    )
    halves = halve([piece])
    assert halves is not None
    assert [len(p.completions) for p in (*halves.first, *halves.second)] == [1, 2]
    assert [t.shape for t in halves.second[0].token_ids or ()] == [(2, 2), (1, 2)]
    assert halve([replace(piece, completions=piece.completions[:1], token_ids=None)]) is None


def save(model, path):
    model.save_pretrained(path)
    return str(path)


def test_swap_counts_a_version_and_keeps_the_old_one_on_failure(engine, tmp_path):
    piece = Piece(ids(1, 2), (ids(3, 4),), 1.0)
    before, info = score(engine, [piece])[0].logprobs, engine.info
    with pytest.raises(ValueError, match="there is no directory"):
        engine.swap(str(tmp_path / "nowhere"))
    assert engine.info == info
    assert np.array_equal(score(engine, [piece])[0].logprobs, before)
    after = engine.swap(save(llama(seed=1), tmp_path / "new"))
    assert after.version == 2
    assert after.fingerprint != info.fingerprint
    assert not np.array_equal(score(engine, [piece])[0].logprobs, before)


@pytest.mark.parametrize("served_name", [None, "policy"])
def test_after_each_swap_the_name_is_of_what_is_hosted_or_the_public_one(tmp_path, served_name):
    paths = [save(llama(seed=seed), tmp_path / name) for seed, name in enumerate("abc")]
    engine = load_engine(EngineConfig(model=paths[0], served_name=served_name))
    infos = [engine.info, *(engine.swap(path) for path in paths[1:]), engine.mix(paths[0], decay=0.5)]
    assert [i.model for i in infos] == ([served_name] * 4 if served_name else [*paths, paths[2]])
    assert [i.version for i in infos] == [1, 2, 3, 4]
    assert len({i.fingerprint for i in infos}) == 4
    assert engine.compute(engine.prepare([Piece(ids(1), (ids(2),), 1.0)])).reference == engine.info == infos[-1]


def test_mix_is_the_average_of_the_weights(engine, tmp_path):
    other = llama(seed=1)
    expected = llama()
    with torch.no_grad():
        for mine, theirs in zip(expected.parameters(), other.parameters(), strict=True):
            mine.copy_(0.9 * mine + 0.1 * theirs)
    info = engine.mix(save(other, tmp_path / "other"), decay=0.9)
    assert info.version == 2
    pieces = [Piece(ids(1, 2, 3), (ids(3, 4, 9),), 1.0)]
    want = TorchEngine(EngineConfig(model="tiny"), Loaded(expected, None, None))
    np.testing.assert_allclose(score(engine, pieces)[0].logprobs, score(want, pieces)[0].logprobs, rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match="swap instead"):
        engine.mix(save(llama(hidden_size=64), tmp_path / "larger"), decay=0.9)
    with pytest.raises(ValueError, match="decay"):
        engine.mix(save(other, tmp_path / "other"), decay=1.5)


def test_fingerprint_is_of_what_the_model_computes(tmp_path):
    model = llama()
    mine = fingerprint(model, None)
    again = AutoModelForCausalLM.from_pretrained(save(model, tmp_path / "copy"))
    assert fingerprint(again, None) == mine
    with torch.no_grad():
        again.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-6
    assert fingerprint(again, None) != mine
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", rms_norm_eps=1e-5 * 2)
    assert fingerprint(again, None) != mine


def test_exact_mode_refuses_half_precision():
    with pytest.raises(ValueError, match="fast"):
        choose_dtype(EngineConfig(model="tiny", dtype="bfloat16"), torch.device("cpu"))
    assert choose_dtype(EngineConfig(model="tiny"), torch.device("cpu")) == torch.float32


class Compiling(Cpu):
    compiles = True


def test_every_kernel_is_run_before_the_first_question_where_kernels_are_compiled():
    asked = []

    def head(*arguments, **options):
        asked.append(
            (options["normalizer"], frozenset(options["want"]), options["top_k"], options["token_ids"] is None)
        )
        return score_rows(*arguments, **options)

    TorchEngine(EngineConfig(model="tiny", mode="fast"), Loaded(llama(), None, None), head, device=Cpu())
    unasked = len(set(asked))
    TorchEngine(EngineConfig(model="tiny", mode="fast"), Loaded(llama(), None, None), head, device=Compiling())
    warmed = set(asked)
    assert len(warmed) > unasked
    for normalizer in NORMALIZERS:
        assert {(normalizer, frozenset({extra}), 0, True) for extra in EXTRAS if extra != "tail"} <= warmed
        assert {(normalizer, frozenset({"tail"}), *beside) for beside in ((8, True), (0, False))} <= warmed
        assert {(normalizer, frozenset(), 8, True), (normalizer, frozenset(), 0, False)} <= warmed
        assert (normalizer, frozenset(EXTRAS), 8, False) in warmed


class Tf32(Cpu):
    def product(self, a, b):
        return (a.bfloat16() @ b.bfloat16()).float()


def test_exact_mode_does_not_start_on_a_device_that_rounds_its_products():
    with pytest.raises(ValueError, match="exact needs float32 products"):
        TorchEngine(EngineConfig(model="tiny", mode="exact"), Loaded(llama(), None, None), device=Tf32())
    other = TorchEngine(EngineConfig(model="tiny", mode="invariant"), Loaded(llama(), None, None), device=Tf32())
    assert other.info.mode == "invariant"


def test_the_mode_follows_the_device_unless_it_is_said():
    assert [mode_on("auto", kind) for kind in ("cpu", "cuda")] == ["exact", "invariant"]
    assert mode_on("fast", "cpu") == "fast"
    assert TorchEngine(EngineConfig(model="tiny"), Loaded(llama(), None, None)).info.mode == "exact"
