"""What scoring must know of a causal language model of transformers, read in one place for the server and for training:
its body and head, its layers, what of its rotary frequencies depends on length, and the groups that every way of scoring it
is tried on.

Duck-typed: transformers is not imported.
"""

from .head import body_of, head_spec, output_head
from .layers import attention_layers, layer_configs, longest_sequence, longest_window
from .rotary import fresh_rotary, rotary_edge
from .trial import same_scores, trial_groups

__all__ = [
    "attention_layers",
    "body_of",
    "fresh_rotary",
    "head_spec",
    "layer_configs",
    "longest_sequence",
    "longest_window",
    "output_head",
    "rotary_edge",
    "same_scores",
    "trial_groups",
]
