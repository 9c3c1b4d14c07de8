"""What is wrong with these rollouts? Rules over log-probs, ids, rewards and a run's figures; NumPy alone.

    findings = check(read_samples(Path("runs/demo/samples.jsonl")), served=ReferenceClient("http://localhost:8000"))

`samples` reads a file, `policy`, `prompts`, `endings`, `kl`, `rewards` and `metrics` hold the rules, `rescoring` and `explain`
those that ask the reference again, `checking` asks them all.
"""

from grpo_client.findings.checking import check, check_samples, in_order
from grpo_client.findings.finding import ENOUGH, Finding, Rule, Verdict
from grpo_client.findings.metrics import check_metrics
from grpo_client.findings.samples import Samples, SamplesError, read_samples, samples_of

__all__ = [
    "ENOUGH",
    "Finding",
    "Rule",
    "Samples",
    "SamplesError",
    "Verdict",
    "check",
    "check_metrics",
    "check_samples",
    "in_order",
    "read_samples",
    "samples_of",
]
