"""Is an endpoint that gives log-probs right? Ours or another's, in the dialect that it speaks, against transformers in fp32.

    grpo-client probe http://localhost:8000 --dialect openai --against demo

`cases` is what is asked, `dialects` how, `oracle` knows the right answer, `checks` compares, `report` tells. Needs no torch:
the oracle is a process of its own or another server.
"""

from grpo_client.probe.checks import CheckResult, Outcome, run_checks
from grpo_client.probe.dialects import DIALECTS
from grpo_client.probe.endpoint import Endpoint, EndpointFailed
from grpo_client.probe.oracle import Oracle, OracleFailed, open_oracle

__all__ = [
    "DIALECTS",
    "CheckResult",
    "Endpoint",
    "EndpointFailed",
    "Oracle",
    "OracleFailed",
    "Outcome",
    "open_oracle",
    "run_checks",
]
