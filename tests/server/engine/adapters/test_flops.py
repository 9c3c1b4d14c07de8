"""An adapter's own products come on top of its base's, for its own rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import saved
from safetensors.torch import load_file
from tuned import ALL, FILE, adapted, engine_of, pieces_of, put_on, written

pytest.importorskip("peft")


def lora_numbers(path: Path, without: str = "nothing") -> int:
    return sum(t.numel() for name, t in load_file(path / FILE).items() if "lora_" in name and without not in name)


@pytest.mark.parametrize("tier", ["packed", "plain"])
def test_two_operations_for_each_number_and_row(tmp_path: Path, tier: str) -> None:
    base = engine_of(saved(tmp_path / "base"), tier=tier, peak_tflops=2.0)
    path = adapted(tmp_path / "adapter", tmp_path / "base", target_modules=ALL)
    tuned = put_on(base, path)
    plain, own = (engine.compute(engine.prepare(pieces_of())) for engine in (base, tuned))
    assert plain.computed_tokens == own.computed_tokens
    assert own.flops == plain.flops + 2 * lora_numbers(path) * own.computed_tokens
    assert tuned.peak_flops == base.peak_flops == 2e12


def test_in_company_each_row_counts_its_own_adapter(tmp_path: Path) -> None:
    base = engine_of(saved(tmp_path / "base"))
    paths = [adapted(tmp_path / "small", tmp_path / "base", r=2), adapted(tmp_path / "large", tmp_path / "base", r=7)]
    small, large = (put_on(base, path, path.name) for path in paths)
    pieces, engines = pieces_of(groups=3), [large, base, small]
    answer = base.compute(base.prepare(pieces, engines))
    of_base = sum(base.compute(base.prepare([piece])).flops for piece in pieces)  # nothing is shared between them
    rows = [base.prepare([piece]).tokens for piece in pieces]
    assert answer.flops == of_base + 2 * (lora_numbers(paths[1]) * rows[0] + lora_numbers(paths[0]) * rows[2])


def test_the_pair_of_an_embedding_looks_up_and_multiplies_once(tmp_path: Path) -> None:
    base = engine_of(saved(tmp_path / "base"))
    path = adapted(tmp_path / "adapter", tmp_path / "base", target_modules=["q_proj", "embed_tokens"])
    tuned = put_on(base, path)
    [batch] = [tuned.prepare(pieces_of())]
    added = tuned.compute(batch).flops - base.compute(base.prepare(pieces_of())).flops
    assert added == 2 * lora_numbers(path, without="lora_embedding_A") * batch.tokens


def test_a_base_that_is_not_known_hides_its_adapters(tmp_path: Path) -> None:
    base = engine_of(saved(tmp_path / "base"))
    tuned = put_on(base, written(tmp_path / "adapter"))
    object.__setattr__(tuned._base, "flops", type(tuned._base.flops)())
    assert tuned.compute(tuned.prepare(pieces_of())).flops == 0
