"""slime and miles take a served reference through the hook for their teacher; the task's reward stays as it is.

    export GRPO_REFERENCE_URL=http://host:8000
    ... --use-opd --opd-type sglang --opd-kl-coef 0.04 \
        --custom-reward-post-process-path slime_reference.post_process_rewards

The coefficient is the beta of a KL to the reference. One request for a batch, each prompt once. What the hook also has to do is
slime's own normalisation of rewards by group, since it takes that one's place. GRPO_REFERENCE_MODEL names the reference, where
the server hosts several.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from grpo_client import ReferenceClient
from grpo_client.verl.rows import submit


def post_process_rewards(args: Any, samples: list[Any], **_: Any) -> tuple[list[float], list[float]]:
    """Raw and normalised rewards; each sample gets `teacher_log_probs`, (response_length,) fp32.

    Raises ValueError for a sample without a finite score.
    """
    prompts = [list(s.tokens[: len(s.tokens) - s.response_length]) for s in samples]
    responses = [list(s.tokens[len(s.tokens) - s.response_length :]) for s in samples]
    url, name = os.environ["GRPO_REFERENCE_URL"], os.environ.get("GRPO_REFERENCE_MODEL")
    with ReferenceClient(url, model=name) as reference:
        scores = submit(reference, prompts, responses, args.rollout_temperature).collect()
    for sample, score in zip(samples, scores, strict=True):
        sample.teacher_log_probs = score
    raw = [float(s.get_reward_value(args)) for s in samples]
    if not args.rewards_normalization:
        return raw, raw
    rewards = torch.tensor(raw).reshape(-1, args.n_samples_per_prompt)
    rewards = rewards - rewards.mean(dim=-1, keepdim=True)
    if args.advantage_estimator in ("grpo", "gspo", "cispo") and args.grpo_std_normalization:
        rewards = rewards / (rewards.std(dim=-1, keepdim=True) + 1e-6)
    return raw, rewards.flatten().tolist()
