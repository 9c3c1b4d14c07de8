"""The door for Axolotl:

    plugins:
      - grpo_training.axolotl.StableMaxPlugin
    stablemax: true
    orthograd: true

StableMax comes in through torch's cross-entropy, patched from before the model is loaded until training has ended: every
cross-entropy in the process is StableMax's then. OrthoGrad comes in where the trainer makes its optimizer.
"""

from grpo_training.axolotl.args import StableMaxArgs
from grpo_training.axolotl.plugin import StableMaxPlugin

__all__ = ["StableMaxArgs", "StableMaxPlugin"]
