"""Fine-tune Llama-3.2-1B on Alpaca-cleaned with StableMax and orthogonal gradients.

python examples/llama3.2-1b-alpaca.py                      needs a GPU, `pip install datasets` and access to the model
python examples/llama3.2-1b-alpaca.py --offline            the same code: a small random Llama, ten rows, no network
python examples/llama3.2-1b-alpaca.py --offline --model demo   the demo model instead of the random one
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from grpo_client.models.demo import locate
from grpo_training.hf import StableMaxTrainer, StableMaxTrainingArguments
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)

MODEL, DATASET = "meta-llama/Llama-3.2-1B", "yahma/alpaca-cleaned"
SAMPLE = Path(__file__).parent / "data" / "alpaca_format.jsonl"

HEAD = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
WITH_INPUT = HEAD.format(", paired with an input that provides further context") + (
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = HEAD.format("") + "### Instruction:\n{instruction}\n\n### Response:\n"


def encode(row: Mapping[str, str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list[int]]:
    """Ids of one row in Alpaca's prompt format; only the answer and its end are labels."""
    prompt = (WITH_INPUT if row["input"] else WITHOUT_INPUT).format_map(row)
    prompt_ids = tokenizer(prompt)["input_ids"]
    answer_ids = [*tokenizer(row["output"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids = (prompt_ids + answer_ids)[:max_length]
    labels = ([-100] * len(prompt_ids) + answer_ids)[:max_length]
    return {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)}


def load_rows(offline: bool) -> Iterable[Mapping[str, str]]:
    """instruction, input, output: from the hub, or the sample of the same format beside this file."""
    if offline:
        return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    from datasets import load_dataset

    return load_dataset(DATASET, split="train")


def load_model(name: str | None, offline: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if offline and name is None:
        return random_llama()
    source = locate(name or MODEL)
    tokenizer = AutoTokenizer.from_pretrained(source.path, gguf_file=source.gguf_file)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(source.path, gguf_file=source.gguf_file, dtype=dtype)
    return model, tokenizer


def random_llama() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Llama of two layers over bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<eos>": 1} | {symbol: i for i, symbol in enumerate(alphabet, start=2)}
    bytes_only = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, pad_token="<pad>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--offline", action="store_true", help="no network: a small model and the shipped sample")
    parser.add_argument("--model", help=f"another model than {MODEL}; `demo` is the demo model")
    parser.add_argument("--output", default="runs/llama3.2-1b-alpaca")
    parser.add_argument("--steps", type=int, help="default: 20 offline, else one pass over the data")
    parser.add_argument("--max-length", type=int, default=512)
    options = parser.parse_args()

    set_seed(0)
    model, tokenizer = load_model(options.model, options.offline)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows: list[Any] = [encode(row, tokenizer, options.max_length) for row in load_rows(options.offline)]
    args = StableMaxTrainingArguments(
        options.output,
        use_stable_max=True,
        use_orthogonal_optimizer=True,
        num_train_epochs=1,
        max_steps=options.steps or (20 if options.offline else -1),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1 if options.offline else 16,
        learning_rate=1e-3 if options.offline and options.model is None else 2e-5,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=not options.offline,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=options.offline,
    )
    trainer = StableMaxTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    print(f"saved to {options.output}")


if __name__ == "__main__":
    main()
