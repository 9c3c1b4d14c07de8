"""A student for examples/distill.yaml: a model without a block of its layers, which knows little of what it knew.

    python examples/cut_layers.py --model demo --keep 20 --output runs/student-20

The block lies before the last layers (Gromov et al., arXiv 2403.17887). Of this small model more of them must stay than of a
large one: 20 of its 30 layers are 3 nats a token away from what the example's teacher answers where the last 8 stay, and 15
where the last 2 do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_training.config import ModelConfig
from grpo_training.models.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, a directory, a .gguf file or a hub id")
    parser.add_argument("--keep", type=int, default=20, help="layers that stay")
    parser.add_argument("--last", type=int, default=8, help="how many of them are the model's last ones")
    parser.add_argument("--output", type=Path, required=True)
    told = parser.parse_args()
    loaded = load_model(ModelConfig(name=told.model, device="cpu"))
    layers = loaded.model.base_model.layers
    if not 0 <= told.last < told.keep <= len(layers):
        parser.error(f"{told.model} has {len(layers)} layers: --keep at most as many, and more than --last")
    del layers[told.keep - told.last : len(layers) - told.last]
    for place, layer in enumerate(layers):
        layer.self_attn.layer_idx = place  # where its keys and values lie in the cache
    loaded.model.config.num_hidden_layers = told.keep
    if getattr(loaded.model.config, "layer_types", None):
        loaded.model.config.layer_types = loaded.model.config.layer_types[: told.keep]
    loaded.model.save_pretrained(told.output)
    loaded.tokenizer.save_pretrained(told.output)
    print(f"{told.output}: {told.keep} layers, {loaded.model.num_parameters() / 1e6:.0f} million weights")


if __name__ == "__main__":
    main()
