"""OrthoGrad: what lies along the weights is taken out of each gradient.

    optimizer     over any torch optimizer, and which parameters are projected
    hook          the same as a hook, on an optimizer that somebody else made
    projection    the projection itself, tensors in and tensors out

After Prieto et al., "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv 2501.04697.
"""

from grpo_training.orthograd.hook import FLAG, attach, project
from grpo_training.orthograd.optimizer import OrthoGrad, parameter_groups
from grpo_training.orthograd.projection import orthogonal

__all__ = ["FLAG", "OrthoGrad", "attach", "orthogonal", "parameter_groups", "project"]
