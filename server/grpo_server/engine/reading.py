"""Reads a model whole or not at all: from a directory, a hub id, a GGUF file, or an adapter's directory with its base model.

No remote code unless asked for. Every error is an OSError or a ValueError of one sentence that says what to do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from grpo_client.models.demo import ModelSource, locate
from grpo_client.models.files import UnusableModel, holds_weights
from grpo_client.models.reading import Reading
from grpo_numerics.checkpoint.gguf import require_all_read
from grpo_numerics.checkpoint.loaded import REPORT, WeightsError, require_whole
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)
from transformers.utils.peft_utils import find_adapter_config_file

from .quantised import check_quantised

log = logging.getLogger(__name__)

_BASE = "base_model_name_or_path"
_MERGE = "merge it into the base model (peft's merge_and_unload), save that, and serve what was saved"
# Where no adapter is: with it transformers reads a directory that holds model and adapter as the model alone.
_NOWHERE = {"subfolder": "no adapter"}


def read_model(
    source: ModelSource,
    placement: Mapping[str, object],
    common: Mapping[str, str | bool],
    turn: AbstractContextManager[object] | None = None,
) -> tuple[PreTrainedModel, list[ModelSource]]:
    """The model in `source`, and where a tokenizer may lie, best first.

    placement, common: options of `from_pretrained`; common ones are for the tokenizer, too. turn: held by whoever computes,
    and here while torch's default dtype is another.
    """
    with _default_dtype_in_turn(nullcontext() if turn is None else turn):
        return _read_model(source, placement, common)


@contextmanager
def _default_dtype_in_turn(turn: AbstractContextManager[object]) -> Generator[None]:
    """While transformers makes a model of no numbers yet, torch's default dtype is that of the model, on every thread. A moment
    long; but a forward that runs meanwhile would make tensors of that dtype."""
    own = PreTrainedModel.__dict__["get_init_context"]

    def in_turn(cls: type[PreTrainedModel], *args: Any, **options: Any) -> list[Any]:
        return [turn, *own.__get__(None, cls)(*args, **options)]

    PreTrainedModel.get_init_context = classmethod(in_turn)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        PreTrainedModel.get_init_context = own


def _read_model(
    source: ModelSource, placement: Mapping[str, object], common: Mapping[str, str | bool]
) -> tuple[PreTrainedModel, list[ModelSource]]:
    adapter = None if source.gguf_file else _adapter_config(source.path, common)
    if adapter is None:
        return _read_whole(source, {**placement, **common}), [source]
    if find_spec("peft") is None:
        raise UnusableModel(
            "it is an adapter, which needs peft, and that is not installed; type: pip install 'grpo-refserver[lora]'"
        )
    if holds_weights(Path(source.path)):
        base, apart = source, {"adapter_kwargs": _NOWHERE}
    else:
        base, apart = _base_of(adapter), {"revision": adapter.get("revision") or "main"}
    try:
        model = _read_whole(base, {**placement, **common, **apart})
    except (UnusableModel, WeightsError) as error:
        raise UnusableModel(f"it is an adapter, and its base model ({base.path}) cannot be used: {error}") from error
    _read_adapter(model, source.path, common)
    return model, [source, base]


def read_tokenizer(sources: Sequence[ModelSource], common: Mapping[str, str | bool]) -> PreTrainedTokenizerBase | None:
    """The first tokenizer that is found and can be read, or None: then token ids are served and text is refused."""
    for source in sources:
        try:
            with Reading(source.path, source.gguf_file):
                return AutoTokenizer.from_pretrained(source.path, **_gguf(source), **common)
        except UnusableModel as error:
            log.warning("no tokenizer for %s (%s)", source.path, error)
    log.warning("token ids are served, text is refused")
    return None


def _read_whole(source: ModelSource, options: Mapping[str, Any]) -> PreTrainedModel:
    with Reading(source.path, source.gguf_file):
        read: Any = _class_for(source, options).from_pretrained(source.path, **REPORT, **_gguf(source), **options)
    model, report = read
    if source.gguf_file:
        _forget_gguf(model)
        require_all_read(GGUFReader(Path(source.path, source.gguf_file)), model.config.get_text_config(decoder=True))
    _all_here(model)
    require_whole(model, report)
    return model


def _class_for(source: ModelSource, options: Mapping[str, Any]) -> Any:
    """A causal language model, or one that sees images as well, whose text is scored. Raises UnusableModel for weights in a
    quantised format that nobody here can read."""
    if source.gguf_file:
        return AutoModelForCausalLM
    known = {n: options[n] for n in ("revision", "trust_remote_code", "local_files_only") if n in options}
    config: Any = AutoConfig.from_pretrained(source.path, **known)
    check_quantised(config)
    kind = type(config)
    comes_with_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if comes_with_code or kind in MODEL_FOR_CAUSAL_LM_MAPPING or kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def _adapter_config(path: str, common: Mapping[str, Any]) -> dict[str, Any] | None:
    with Reading(path):
        file = find_adapter_config_file(path, revision=common["revision"])
        return None if file is None else json.loads(Path(file).read_bytes())


def _base_of(adapter: Mapping[str, Any]) -> ModelSource:
    name = adapter.get(_BASE)
    if not isinstance(name, str) or not name:
        raise UnusableModel(f"it is an adapter whose adapter_config.json names no base model ({_BASE}); {_MERGE}")
    try:
        return locate(name)
    except UnusableModel as error:
        raise UnusableModel(
            f"it is an adapter, and its base model is not where adapter_config.json says ({_BASE}): {error}"
        ) from error


def _read_adapter(model: PreTrainedModel, path: str, common: Mapping[str, Any]) -> None:
    head = model.get_output_embeddings()
    with Reading(path):
        report = model.load_adapter(path, adapter_kwargs={"revision": common["revision"]}, ignore_mismatched_sizes=True)
    if model.get_output_embeddings() is not head:
        raise WeightsError(
            f"the adapter changes the output layer, whose own weights the scores are computed from; {_MERGE}"
        )
    require_whole(model, report.to_dict(), adapter=True)


def _gguf(source: ModelSource) -> dict[str, str]:
    return {"gguf_file": source.gguf_file} if source.gguf_file else {}


def _all_here(model: PreTrainedModel) -> None:
    """Weights that accelerate left on the host or on disk are fetched layer by layer, for every batch: refused."""
    away = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if away:
        raise ValueError(
            f"device_map: {len(away)} tensors do not fit on the devices ({away[0]}, ...); use more of them, --dtype bfloat16 "
            "with --mode fast, or --tensor-parallel under torchrun"
        )


def _forget_gguf(model: PreTrainedModel) -> None:
    """The tensors are plain floats by now: drop what says that they came quantized."""
    for holder in (model.config, model):
        for name in ("quantization_config", "hf_quantizer", "is_quantized", "quantization_method"):
            if name in vars(holder):
                delattr(holder, name)
