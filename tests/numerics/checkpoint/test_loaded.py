"""What a loader reports against what a model holds: every difference that could change a log-prob is an error with names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grpo_numerics.checkpoint.loaded import WeightsError, differing, nonfinite_tensors, require_finite, require_whole
from grpo_numerics.checkpoint.names import is_needed, told
from torch import nn

GOOD: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}


class Layers(nn.Module):
    """The names of a small language model: model.layers.N.q_proj.weight, lm_head.weight."""

    def __init__(self, layers: int = 12) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {"layers": nn.ModuleList(nn.ModuleDict({"q_proj": nn.Linear(2, 2)}) for _ in range(layers))}
        )
        self.lm_head = nn.Linear(2, 3, bias=False)


def refused(model: nn.Module, *, adapter: bool = False, **report: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        require_whole(model, {**GOOD, **report}, adapter=adapter)
    return str(caught.value)


def test_a_model_that_was_read_whole_passes() -> None:
    require_whole(Layers(), GOOD)


def test_the_first_few_names_and_a_count() -> None:
    lacking = {f"model.layers.{n}.q_proj.{leaf}" for n in (10, 2, 9) for leaf in ("weight", "bias")}
    told_ = refused(Layers(), missing_keys=lacking)
    names = "model.layers.2.q_proj.bias, model.layers.2.q_proj.weight, model.layers.9.q_proj.bias and 3 more"
    assert f"does not fit its config.json: it lacks {names}; config.json says 12 of model.layers.*" in told_
    assert told_.endswith("and the checkpoint has 9")
    assert told(["b", "a"]) == "a, b"


def test_all_faults_come_at_once_and_a_shape_is_not_told_as_missing() -> None:
    told_ = refused(
        Layers(),
        missing_keys={"lm_head.weight", "model.layers.0.q_proj.weight"},
        mismatched_keys={("model.layers.0.q_proj.weight", torch.Size([4, 2]), torch.Size([2, 2]))},
        unexpected_keys={"output.weight"},
    )
    assert "it lacks lm_head.weight;" in told_
    assert "of another shape are model.layers.0.q_proj.weight 4x2, not 2x2" in told_
    assert "the model has no place for output.weight" in told_


def test_a_layer_beyond_the_config() -> None:
    told_ = refused(Layers(), unexpected_keys={"model.layers.12.q_proj.weight", "model.layers.13.q_proj.weight"})
    assert "no place for model.layers.12.q_proj.weight, model.layers.13.q_proj.weight" in told_
    assert told_.endswith("config.json says 12 of model.layers.*, and the checkpoint has 14")


def test_a_head_that_is_not_there() -> None:
    assert "tie_word_embeddings" in refused(Layers(), missing_keys={"lm_head.weight"})


@pytest.mark.parametrize(
    ("prefix", "help_"),
    [
        ("_orig_mod.", "strip '_orig_mod.' from the names, which torch.compile puts there"),
        ("module.", "strip 'module.' from the names, which DataParallel puts there"),
        ("_fsdp_wrapped_module.", "FSDP"),
        ("base_model.model.", "merge_and_unload"),
        ("actor.", "strip 'actor.' from the names, and save again"),
        ("language_model.", "strip 'language_model.' from the names"),
    ],
)
def test_names_with_something_in_front_get_the_remedy(prefix: str, help_: str) -> None:
    names = set(Layers().state_dict())
    assert help_ in refused(Layers(), missing_keys=names, unexpected_keys={prefix + name for name in names})


def test_a_wrapper_in_the_middle_of_names() -> None:
    wrapped = {f"model.layers.{n}._orig_mod.q_proj.weight" for n in range(12)}
    lacking = {f"model.layers.{n}.q_proj.weight" for n in range(12)}
    assert "torch.compile" in refused(Layers(), missing_keys=lacking, unexpected_keys=wrapped)


@pytest.mark.parametrize("leaf", ["base_layer.weight", "lora_A.default.weight", "lora_B.weight"])
def test_weights_saved_with_an_adapter_in_them(leaf: str) -> None:
    assert "merge" in refused(Layers(), unexpected_keys={f"model.layers.0.q_proj.{leaf}"})


@pytest.mark.parametrize("leaf", ["qweight", "weight_packed", "weight_scale_inv", "SCB"])
def test_quantized_weights_without_a_word_of_it(leaf: str) -> None:
    told_ = refused(
        Layers(), missing_keys={"model.layers.0.q_proj.weight"}, unexpected_keys={f"model.layers.0.q_proj.{leaf}"}
    )
    assert "quantization_config" in told_


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.12.q_proj.weight",
        "model.layers.0.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.norm.bias",
        "lm_head.bias",
        "output.weight",
        "embed_out.weight",
        "model.embed_positions.weight",
        "transformer.h.0.attn.c_attn.bias",
        "bert.encoder.layer.0.attention.self.value.bias",
        "rope_freqs.weight",
        "who_knows.weight",
    ],
)
def test_what_may_change_a_log_prob_is_needed(name: str) -> None:
    assert is_needed(name)
    assert name in refused(Layers(), unexpected_keys={name})


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.cos_cached",
        "transformer.h.0.attn.bias",
        "gpt_neox.layers.0.attention.masked_bias",
        "model.layers.0.self_attn.k_scale",
        "model.embed.position_ids",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "model.vision_tower.vision_model.head.probe",
        "model.visual.patch_embed.weight",
        "multi_modal_projector.linear.weight",
        "audio_tower.conv.weight",
        "v_head.summary.weight",
        "score.weight",
        "mtp.layers.0.weight",
        "model.mtp_layers.0.weight",
    ],
)
def test_what_stands_beside_the_language_model_is_left_out(name: str) -> None:
    assert not is_needed(name)
    require_whole(Layers(), {**GOOD, "unexpected_keys": {name}})


def test_every_tensor_of_an_adapter_counts() -> None:
    told_ = refused(Layers(), adapter=True, unexpected_keys={"vision_tower.q_proj.lora_A.weight"})
    assert told_.startswith("the adapter does not fit its base model: the model has no place for vision_tower")


def test_companions_of_quantized_weights_are_their_formats_own() -> None:
    model = Layers()
    model.hf_quantizer = object()
    require_whole(model, {**GOOD, "unexpected_keys": {"model.layers.0.q_proj.weight_g_idx"}})
    assert "q_proj.bias" in refused(model, unexpected_keys={"model.layers.0.q_proj.bias"})


def test_what_was_made_up_is_found_although_the_report_hides_it() -> None:
    model = Layers(2)
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    require_whole(model, GOOD)
    model.lm_head = nn.Linear(2, 3, bias=False)  # a new tensor carries no mark
    model._keys_to_ignore_on_load_missing = [r"lm_head\.weight"]
    assert "it lacks lm_head.weight" in refused(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_named_in_every_precision(dtype: torch.dtype, value: float) -> None:
    model = Layers(3)
    require_finite(model)
    broken = torch.zeros(2, 2)
    broken[1, 0] = value
    eight = dtype == torch.float8_e5m2
    model.model["layers"][2]["q_proj"].weight = nn.Parameter(broken.to(dtype), requires_grad=not eight)
    assert nonfinite_tensors(model) == ["model.layers.2.q_proj.weight"]
    with pytest.raises(WeightsError, match=r"holds NaN or infinity, in model\.layers\.2\.q_proj\.weight;"):
        require_whole(model, GOOD)


def test_a_mask_may_hold_minus_infinity_and_empty_and_whole_numbers_pass() -> None:
    model = Layers(1)
    model.register_buffer("mask", torch.full((3,), float("-inf")))
    model.register_buffer("steps", torch.tensor(3))
    model.register_parameter("none", nn.Parameter(torch.empty(0)))
    require_finite(model)
    model.mask[1] = float("nan")
    assert nonfinite_tensors(model) == ["mask"]


def test_two_models_with_other_tensors() -> None:
    ours, theirs = ({"a": torch.zeros(2, 2), "b": torch.zeros(3)} for _ in range(2))
    assert differing(theirs, ours) == []
    theirs["b"] = torch.zeros(4)
    theirs["c"] = torch.zeros(1)
    assert differing(theirs, ours) == ["b 4, not 3", "c"]
