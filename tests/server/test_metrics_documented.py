"""The table of metrics in docs/server.md and what a server exposes are the same names with the same labels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from grpo_server.app import create_app
from grpo_server.engine import load_engine
from prometheus_client.parser import text_string_to_metric_families
from server_fakes import make_config, running
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[2] / "docs" / "server.md"
KEYS = """keys:
  - {name: trainer, key: score-key}
  - {name: prometheus, key: metrics-key, scopes: [metrics]}
  - {name: operator, key: admin-key, scopes: [admin]}
"""
BODY = {"groups": [{"prompt": [1, 2, 3], "completions": [[3, 4], [5]]}]}


def documented() -> dict[str, frozenset[str]]:
    """name -> labels, by the first column."""
    section = PAGE.read_text(encoding="utf-8").split("## Metrics\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [found for row in rows for found in re.findall(r"`(\w+)(?:\{([\w,]+)\})?`", row)]
    assert len(named) == len({name for name, _ in named}), "a name is there twice"
    return {name: frozenset(filter(None, labels.split(","))) for name, labels in named}


def exposed(text: str) -> dict[str, frozenset[str]]:
    """The same of an exposition; of a histogram its own name. What says when a counter began, and the process, left out."""
    found: dict[str, frozenset[str]] = {}
    for family in text_string_to_metric_families(text):
        name = family.name + {"counter": "_total"}.get(family.type, "")
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        if not name.startswith("process_") and not name.endswith("_created"):
            found[name.removeprefix("grpo_server_")] = labels
    return found


async def test_every_metric_is_in_the_table_and_every_one_of_the_table_is_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, vocab_size=64)
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(tmp_path / "model")
    config = make_config(model=str(tmp_path / "model"), device="cpu", keys_file=keys, peak_tflops=0.1)
    async with running(create_app(config, lambda: load_engine(config.engine()))) as client:

        def key(name: str) -> dict[str, str]:
            return {"Authorization": f"Bearer {name}-key"}

        assert (await client.post("/v1/logprobs", json=BODY, headers=key("score"))).status_code == 200
        assert (await client.post("/v1/logprobs", json={**BODY, "temperature": 0}, headers=key("score"))).is_error
        swapped = await client.post("/admin/reference", json={"model": str(tmp_path / "model")}, headers=key("admin"))
        assert swapped.status_code == 200
        text = (await client.get("/metrics", headers=key("metrics"))).text
    found = exposed(text)
    # the identity of the reference is its labels
    assert found.pop("reference_info") >= {"model", "fingerprint", "dtype", "mode"}
    expected = documented()
    assert not expected.pop("reference_info")
    assert found == expected
