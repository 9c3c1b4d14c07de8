"""Plain transformers in fp32 as a process that answers native requests: what `grpo-client probe --against MODEL` trusts.

    python -m grpo_server.oracle demo

On purpose nothing of the engine and nothing of grpo_numerics: one eager forward per sequence, one log-softmax in fp64. It
speaks over stdin and stdout as `grpo_client.probe.oracle` says; stderr is for people.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from grpo_client import wire_tensors
from grpo_client.extras import needs_extra
from grpo_client.models.demo import locate
from grpo_client.models.reading import Reading
from grpo_client.protocol import ReferenceInfo, ScoreRequest, ScoreResult, Status

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LENGTH = struct.Struct(">I")


class TransformersOracle:
    """One model, loaded as `from_pretrained` gives it. Raises OSError or ValueError when it cannot be."""

    def __init__(self, name: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        source = locate(name)
        files: dict[str, Any] = {"gguf_file": source.gguf_file} if source.gguf_file else {}
        self._name = name
        with Reading(source.path, source.gguf_file):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **files
            )
        if lacking := sorted(loaded[1]["missing_keys"]):
            raise ValueError(f"the checkpoint lacks {len(lacking)} tensors of the model ({lacking[0]}, ...)")
        self.model: PreTrainedModel = loaded[0].eval()
        self.tokenizer: PreTrainedTokenizerBase | None = None
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source.path, **files)
        except (OSError, ValueError, KeyError):
            print(f"{name} has no tokenizer: the probe uses random ids", file=sys.stderr)  # noqa: T201

    @property
    def info(self) -> ReferenceInfo:
        head = self.model.get_output_embeddings()
        assert head is not None
        config = self.model.config.get_text_config(decoder=True)
        return ReferenceInfo(
            model=self._name,
            fingerprint="transformers",
            version=0,
            dtype="float32",
            mode="exact",
            max_length=getattr(config, "max_position_embeddings", None) or 2**20,
            vocab_size=len(head.weight),
        )

    def facts(self, texts: list[str]) -> dict[str, Any]:
        """What `grpo_client.probe.cases.Facts` holds."""
        tokenizer, info = self.tokenizer, self.info
        return {
            "vocab_size": info.vocab_size,
            "max_length": info.max_length,
            "eos_id": None if tokenizer is None else tokenizer.eos_token_id,
            "texts": []
            if tokenizer is None
            else [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
        }

    def score(self, request: ScoreRequest) -> ScoreResult:
        """Each completion by a forward of its own."""
        import torch

        rows: list[np.ndarray] = []
        for group in request.groups:
            for completion in group.completions:
                ids = torch.from_numpy(np.concatenate([group.prompt, completion])).long()
                with torch.inference_mode():
                    logits = self.model(ids[None], use_cache=False).logits[0, len(group.prompt) - 1 : -1].double()
                    scores = torch.log_softmax(logits / group.temperature, dim=-1)
                    rows.append(scores.gather(1, ids[len(group.prompt) :, None])[:, 0].float().numpy())
        logprobs = np.concatenate([np.empty(0, np.float32), *rows])
        return ScoreResult(
            reference=self.info,
            normalizer="softmax",
            temperature=np.array([g.temperature for g in request.groups], dtype=np.float32),
            group_sizes=request.group_sizes,
            completion_lengths=request.completion_lengths,
            logprobs=logprobs,
            status=np.array([Status.OK if np.isfinite(r).all() else Status.NONFINITE for r in rows], dtype=np.uint8),
        )


def serve(oracle: TransformersOracle, stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """Texts and facts, then requests and results until stdin ends."""
    stdout.write(json.dumps(oracle.facts(json.loads(stdin.readline()))).encode() + b"\n")
    stdout.flush()
    while len(head := stdin.read(_LENGTH.size)) == _LENGTH.size:
        request = wire_tensors.decode_request(stdin.read(_LENGTH.unpack(head)[0]))
        body = wire_tensors.encode_result(oracle.score(request))
        stdout.write(_LENGTH.pack(len(body)) + body)
        stdout.flush()


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m grpo_server.oracle MODEL")
    with needs_extra("server", "the oracle"):
        import torch  # noqa: F401
        import transformers  # noqa: F401
    try:
        oracle = TransformersOracle(sys.argv[1])
    except (OSError, ValueError) as error:
        raise SystemExit(f"the oracle cannot load {sys.argv[1]}: {' '.join(str(error).split())}") from error
    serve(oracle, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
