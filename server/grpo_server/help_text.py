"""What `grpo-server --help` says before and after the settings."""

from __future__ import annotations

DESCRIPTION = """\
Serve per-token log-probs of a frozen reference model over HTTP.

Tokens in, log-probs out: POST /v1/logprobs as JSON or safetensors; see /docs on the running server.
"""

EXAMPLES = """\
examples:
  grpo-server --model demo
      SmolLM2-135M-Instruct on this machine, port 8000, no download from a hub.
  grpo-server --model ./checkpoints/sft --device cuda --host 0.0.0.0 --api-key-file keys.txt
      a local directory in bfloat16 on a GPU, the same bits in any batch, open to the network for whoever holds a key.
  grpo-server --model org/large-model --revision 4f2c9ab --device-map auto --max-batch-tokens 4096
      a hub model over several devices, in smaller batches.
  torchrun --nproc-per-node 4 -m grpo_server --model org/large-model --tensor-parallel --device cuda
      every layer split over four GPUs.
  GRPO_SERVER_MODEL=demo GRPO_SERVER_PORT=9000 grpo-server
      every flag is also an environment variable: GRPO_SERVER_, upper case, _ for -.
  grpo-server --config server.yaml
      and a key in a YAML or TOML file, with _ for -.

then:
  curl localhost:8000/v1/logprobs -H 'content-type: application/json' \\
       -d '{"groups": [{"prompt": "The sky is", "completions": [" blue", " green"]}]}'
"""
