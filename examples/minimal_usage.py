"""StableMax and orthogonal gradients in the Hugging Face Trainer: a small GPT-2, a toy set, no network.

    python examples/minimal_usage.py                    both on
    python examples/minimal_usage.py --softmax --plain  neither, for comparison

The toy set is addition modulo 23 written with one token a number: "a + b = c". Half of the table is trained on, the other
half asked for at the end.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from grpo_training.hf import StableMaxTrainer, StableMaxTrainingArguments
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

MODULUS = 23
PLUS, EQUALS = MODULUS, MODULUS + 1


class Sums(Dataset):
    """Rows `a + b = c`, of which only c is a label."""

    def __init__(self, pairs: list[tuple[int, int]]) -> None:
        self.rows = torch.tensor([[a, PLUS, b, EQUALS, (a + b) % MODULUS] for a, b in pairs])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        labels = torch.full_like(self.rows[i], -100)
        labels[-1] = self.rows[i, -1]
        return {"input_ids": self.rows[i], "labels": labels}


def accuracy(model: GPT2LMHeadModel, data: Sums) -> float:
    with torch.no_grad():
        guess = model.eval()(input_ids=data.rows[:, :-1]).logits[:, -1].argmax(-1)
    return float((guess == data.rows[:, -1]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--softmax", action="store_true", help="the ordinary loss")
    parser.add_argument("--plain", action="store_true", help="the ordinary gradient")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()

    set_seed(0)
    order = torch.randperm(MODULUS**2).tolist()
    pairs = [divmod(i, MODULUS) for i in order]
    train, test = Sums(pairs[: len(pairs) // 2]), Sums(pairs[len(pairs) // 2 :])
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 8, "vocab_size": MODULUS + 2}
    dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=EQUALS, eos_token_id=EQUALS))

    with tempfile.TemporaryDirectory() as output:
        args = StableMaxTrainingArguments(
            output,
            use_stable_max=not options.softmax,
            use_orthogonal_optimizer=not options.plain,
            skip_param_types=["bias", "LayerNorm"],
            max_steps=options.steps,
            per_device_train_batch_size=len(train),
            learning_rate=3e-3,
            logging_steps=max(options.steps // 6, 1),
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        StableMaxTrainer(model=model, args=args, train_dataset=train).train()
    print(f"accuracy: train {accuracy(model, train):.3f}, held out {accuracy(model, test):.3f}")


if __name__ == "__main__":
    main()
