"""StableMaxTrainer on a model small enough to compute by hand: the shift, the projection, closures, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_numerics import stablemax
from grpo_training.hf import MODEL_CONFIG_MAPPING, StableMaxLoss, StableMaxTrainer, StableMaxTrainingArguments
from grpo_training.hf.architectures import small_config
from grpo_training.orthograd import FLAG
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

VOCAB = 17


class Rows(Dataset):
    """Eight rows of six tokens, the first label of each ignored."""

    def __init__(self) -> None:
        self.ids = torch.randint(VOCAB, (8, 6), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        labels = self.ids[i].clone()
        labels[:2] = -100
        return {"input_ids": self.ids[i], "labels": labels, "attention_mask": torch.ones_like(labels)}


def gpt2(**more: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = small_config(
        "gpt2", vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        setattr(config, name, 0.0)
    config.update(more)
    return GPT2LMHeadModel(config)


def trainer(tmp_path: Path, model: nn.Module | None = None, rest: dict[str, Any] | None = None, **fields: Any) -> Any:
    fields = {"max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 4, **fields}
    args = StableMaxTrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1, **fields
    )
    return StableMaxTrainer(model=model or gpt2(), args=args, train_dataset=Rows(), **(rest or {}))


def by_hand(model: nn.Module, batch: dict[str, Tensor]) -> float:
    """-log StableMax of the *next* token, averaged over the labels that count, one token at a time."""
    with torch.no_grad():
        p = stablemax(model(input_ids=batch["input_ids"]).logits.double())
    terms = [
        -p[b, t, label].log()
        for b, row in enumerate(batch["labels"].tolist())
        for t, label in enumerate(row[1:])
        if label != -100
    ]
    return float(torch.stack(terms).mean())


@pytest.mark.parametrize("which", ["use_stable_max", "use_log_stable_max"])
def test_the_loss_is_of_the_next_token(tmp_path: Path, which: str) -> None:
    model = gpt2()
    run = trainer(tmp_path, model, **{which: True})
    batch = {name: torch.stack([row[name] for row in Rows()]) for name in ("input_ids", "labels")}
    # fp32 logits of a two-layer model: a few units in the last place of a loss near 3
    assert model(**batch).loss.item() == pytest.approx(by_hand(model, batch), rel=1e-6)
    assert run.evaluate(Rows())["eval_loss"] == pytest.approx(by_hand(model, batch), rel=1e-6)


def test_gradient_accumulation_changes_nothing(tmp_path: Path) -> None:
    whole, parts = gpt2(), gpt2()
    trainer(tmp_path, whole, use_stable_max=True, per_device_train_batch_size=8).train()
    trainer(tmp_path, parts, use_stable_max=True, per_device_train_batch_size=2, gradient_accumulation_steps=4).train()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        # Adam divides by the root of the gradient's square, so an entry of rounding noise may move by a step either way.
        assert (a - b).abs().gt(1e-5).float().mean() < 0.01


def test_label_smoothing_is_stablemax_too(tmp_path: Path) -> None:
    model = gpt2()
    run = trainer(tmp_path, model, use_stable_max=True, label_smoothing_factor=0.3)
    ids = Rows().ids
    loss = run.compute_loss(model, {"input_ids": ids, "labels": ids})
    with torch.no_grad():
        log_p = stablemax(model(input_ids=ids).logits.double())[:, :-1].log()
    expected = -(0.7 * log_p.gather(-1, ids[:, 1:, None]).mean() + 0.3 * log_p.mean())
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)


def test_shifted_labels_are_not_shifted_again() -> None:
    logits = torch.randn(2, 5, VOCAB, generator=torch.Generator().manual_seed(3))
    labels = torch.randint(VOCAB, (2, 5), generator=torch.Generator().manual_seed(4))
    shifted = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], dim=1)
    loss = StableMaxLoss()
    assert torch.equal(loss(logits, labels, VOCAB), loss(logits, labels, VOCAB, shift_labels=shifted))
    total = loss(logits, labels, VOCAB, num_items_in_batch=torch.tensor(16))
    torch.testing.assert_close(total, loss(logits, labels, VOCAB) * 8 / 16)


def test_the_collapse_free_form_stays_above_zero() -> None:
    """StableMax's tail is polynomial: in fp32 it takes logits of 1e12 to lose the other classes."""
    logits = torch.tensor([[[1e12, -1.0, -1.0], [0.0, 0.0, 0.0]]])
    labels = torch.tensor([[1, 0]])
    assert float(StableMaxLoss()(logits, labels, 3)) == 0.0
    assert 0.0 < float(StableMaxLoss(collapse_free=True)(logits, labels, 3)) < 1e-11


def test_every_step_is_orthogonal_to_the_weights(tmp_path: Path) -> None:
    """With SGD the update is the gradient, so it must be orthogonal to where the weights stood; plain SGD's is not."""
    for on in (False, True):
        model = gpt2()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        trainer(tmp_path, model, use_orthogonal_optimizer=on, optim="sgd", max_steps=1, max_grad_norm=0.0).train()
        cosines = {}
        for name, p in model.named_parameters():
            update = (p.detach() - before[name]).double().flatten()
            if "ln_" not in name and "bias" not in name:
                cosines[name] = float(nn.functional.cosine_similarity(update, before[name].double().flatten(), dim=0))
        worst = max(abs(c) for c in cosines.values())
        # The update is read off fp32 weights: their rounding is 6e-8 of a weight, the update about 1e-3 of it.
        assert (worst < 1e-4) is on, cosines


def test_norms_and_biases_keep_their_gradient_by_default(tmp_path: Path) -> None:
    model = gpt2()
    run = trainer(tmp_path, model, use_orthogonal_optimizer=True, weight_decay=0.1)
    run.create_optimizer()
    flags = {id(p): group[FLAG] for group in run.optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        assert flags[id(p)] is not ("ln_" in name or name.endswith("bias")), name
        assert decay[id(p)] == (0.0 if "ln_" in name or name.endswith("bias") else 0.1), name


def test_skips_match_names_and_classes_and_nothing_else(tmp_path: Path) -> None:
    model = gpt2()
    run = trainer(tmp_path, model, use_orthogonal_optimizer=True, skip_param_types=["wte", "LayerNorm"])
    run.create_optimizer()
    left = {id(p) for group in run.optimizer.param_groups if not group[FLAG] for p in group["params"]}
    assert {n for n, p in model.named_parameters() if id(p) in left} == {
        n for n, _ in model.named_parameters() if "wte" in n or "ln_" in n
    }
    with pytest.raises(ValueError, match="'RMSNrm'"):
        trainer(tmp_path, use_orthogonal_optimizer=True, skip_param_types=["RMSNrm"]).create_optimizer()


def test_a_closure_runs_once_and_its_gradient_is_projected(tmp_path: Path) -> None:
    model = gpt2()
    run = trainer(tmp_path, model, use_orthogonal_optimizer=True, optim="sgd", skip_param_types=[])
    optimizer, ids, runs = run.create_optimizer(), Rows().ids, []

    def closure() -> Tensor:
        optimizer.zero_grad()
        runs.append(1)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss

    weight = model.transformer.h[0].mlp.c_fc.weight
    before = weight.detach().clone()
    optimizer.step(closure)
    assert len(runs) == 1
    cosine = nn.functional.cosine_similarity(weight.grad.flatten(), before.flatten(), dim=0)
    assert abs(float(cosine)) < 1e-6


def test_the_projection_is_hooked_once(tmp_path: Path) -> None:
    run = trainer(tmp_path, use_orthogonal_optimizer=True)
    first = run.create_optimizer()
    assert run.create_optimizer() is first
    assert len(first._optimizer_step_pre_hooks) == 1


def test_an_optimizer_of_ones_own_is_projected(tmp_path: Path) -> None:
    model = gpt2()
    given = torch.optim.SGD(model.parameters(), lr=0.1)
    run = trainer(tmp_path, model, rest={"optimizers": (given, None)}, use_orthogonal_optimizer=True)
    run.create_optimizer()
    assert len(given._optimizer_step_pre_hooks) == 1
    assert len(given.param_groups) == 1
    again = trainer(
        tmp_path, model, rest={"optimizers": (given, None)}, use_orthogonal_optimizer=True, skip_param_types=["bias"]
    )
    with pytest.raises(ValueError, match="parameter_groups"):
        again.create_optimizer()


@pytest.mark.parametrize("tied", [True, False])
def test_the_expanded_layer_trains_saves_and_is_never_generated(tmp_path: Path, tied: bool) -> None:
    model = gpt2(tie_word_embeddings=tied)
    run = trainer(tmp_path, model, use_stable_max=True, expand_final_layer=True)
    assert model.get_output_embeddings().weight.shape[0] == model.config.vocab_size == VOCAB + 1
    with torch.no_grad():
        assert float(model(input_ids=Rows().ids).logits[..., VOCAB].abs().max()) == 0.0
    run.train()
    run.save_model(tmp_path / "model")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(back(input_ids=Rows().ids).logits, model(input_ids=Rows().ids).logits)
    with torch.no_grad():
        model.get_output_embeddings().weight[VOCAB] = 100 * model.get_output_embeddings().weight[0].sign()
    out = model.generate(Rows().ids[:, :2], max_new_tokens=5, do_sample=False, pad_token_id=2)
    assert not out.eq(VOCAB).any()


def test_a_model_that_ignores_its_loss_function_is_found_out(tmp_path: Path) -> None:
    class Stubborn(GPT2LMHeadModel):
        def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> dict[str, Tensor]:
            logits = super().forward(input_ids=input_ids).logits
            return {"loss": nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}

    run = trainer(tmp_path, Stubborn(gpt2().config), use_stable_max=True)
    with pytest.raises(RuntimeError, match="Stubborn computed a loss without its loss_function"):
        run.train()


def test_what_would_win_over_stablemax_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compute_loss_func"):
        trainer(tmp_path, rest={"compute_loss_func": lambda *a, **k: None}, use_stable_max=True)
    with pytest.raises(ValueError, match="Liger"):
        StableMaxTrainingArguments(str(tmp_path), use_stable_max=True, use_liger_kernel=True)
    with pytest.raises(ValueError, match="orthogonal_granularity"):
        StableMaxTrainingArguments(str(tmp_path), orthogonal_granularity="column")
    with pytest.raises(ValueError, match="no transformers model"):
        trainer(tmp_path, nn.Linear(2, 2), use_stable_max=True)


@pytest.mark.parametrize("name", MODEL_CONFIG_MAPPING)
def test_the_mapping_is_what_transformers_builds(name: str) -> None:
    entry = MODEL_CONFIG_MAPPING[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            small_config(
                name, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=VOCAB, pad_token_id=0
            )
        )
    assert model.get_submodule(entry.final_layer) is model.get_output_embeddings()
    classes = {type(m).__name__ for m in model.modules()}
    assert set(entry.norms) <= classes
    assert not {c for c in classes if "Norm" in c} - set(entry.norms)
    assert any("bias" in n for n, _ in model.named_parameters()) is entry.bias


def test_llama_trains_under_both(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    run = trainer(tmp_path, LlamaForCausalLM(config), use_stable_max=True, use_orthogonal_optimizer=True, max_steps=30)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < 0.85 * losses[0]
