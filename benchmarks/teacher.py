"""What an answer with k best tokens a position costs between the server's arrays and the client's: bytes and milliseconds.

    python -m benchmarks.teacher                a table for k = 1, 16, 64, 256
    python -m benchmarks.teacher --tokens 4096

Beside the native wire: the same figures as the field `prompt_logprobs` of vLLM's answers and `input_top_logprobs` of SGLang's
(without texts), made by this server's dialects, read by `json.loads`; of fewer tokens, and scaled, since they are large.
Encoding counts up to the bytes that go to the socket, decoding from the bytes that came from it to arrays that were checked.
The peak is what the server allocates for an answer and its encoding together, the figures of the engine left out. No model and
no network: they are the same for all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from grpo_client import ReferenceInfo, ScoreRequest, ScoreResult, Usage, wire_json, wire_tensors
from grpo_client.protocol import TopDtype
from grpo_client.validation.answers import check_answer
from grpo_client.wire_json.result_writer import result_object
from grpo_client.wire_json.writer import in_steps
from grpo_server.engine.contract import PieceScores
from grpo_server.routes._answers import gathered
from grpo_server.routes.dialects._prompt_logprobs import prompt_logprobs
from grpo_server.routes.dialects._sequence_values import SequenceScores
from grpo_server.routes.dialects.sglang import best_entries
from grpo_server.scheduler.assembly import Assembly

VOCAB = 49_152
INFO = ReferenceInfo(
    model="m", fingerprint="f" * 64, version=1, dtype="float32", mode="exact", max_length=2**20, vocab_size=VOCAB
)
JSON_TOKENS = 1024  # of the dialects, scaled up


@dataclass(frozen=True)
class Cost:
    """bytes a token; encode, decode: milliseconds for all tokens; peak: of the server, in answers; 0 where not measured."""

    name: str
    bytes: float
    encode: float
    decode: float
    peak: float = 0.0


def question(tokens: int, k: int, top_dtype: TopDtype = "float32") -> ScoreRequest:
    """Completions of 1,024 tokens, or one of fewer."""
    length = min(1024, tokens)
    completions = [np.ones(length, np.int32)] * (tokens // length)
    return ScoreRequest.of([[1]], [completions], top_k=k, top_dtype=top_dtype)


def engine_scores(request: ScoreRequest) -> PieceScores:
    """What an engine answers, at random."""
    rng = np.random.default_rng(0)
    n, k = int(request.completion_lengths.sum()), request.top_k
    top = -np.sort(rng.random((n, k), np.float32) * 20, axis=1)
    extras: dict[str, Any] = {"top_ids": rng.integers(0, VOCAB, (n, k), np.int32), "top_logprobs": top}
    return PieceScores(top[:, 0].copy(), np.zeros(len(request.completion_lengths), np.uint8), extras)


def assembled(request: ScoreRequest, scores: PieceScores) -> ScoreResult:
    """The answer as the scheduler makes it."""
    assembly = Assembly(request)
    assembly.place(range(len(request.completion_lengths)), scores)
    return assembly.finish(INFO, Usage())


def best_of(repeats: int, work: Callable[[], Any]) -> float:
    """The quickest of some runs, in milliseconds."""
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def native(tokens: int, k: int, top_dtype: TopDtype) -> Cost:
    """The safetensors wire."""
    request = question(tokens, k, top_dtype)
    scores = engine_scores(request)
    result = assembled(request, scores)
    body = wire_tensors.encode_result(result)
    encode = best_of(5, lambda: gathered(wire_tensors.result_chunks(result)))
    received = [bytearray(body) for _ in range(5)]  # as the client's transport collects it

    def decode() -> None:
        check_answer(wire_tensors.decode_result(received.pop()), request)

    name = f"tensors, {top_dtype}"
    return Cost(name, len(body) / tokens, encode, best_of(5, decode), server_peak(request, scores) / len(body))


def server_peak(request: ScoreRequest, scores: PieceScores) -> int:
    """Bytes that assembling and encoding allocate at most."""
    tracemalloc.start()
    try:
        chunks = gathered(wire_tensors.result_chunks(assembled(request, scores)))
        assert chunks
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def in_json(tokens: int, k: int, name: str, document: Callable[[ScoreResult], Any]) -> Cost:
    """A dialect's answer to a few tokens, scaled to all."""
    few = min(JSON_TOKENS, tokens)
    request = question(few, k)
    result = assembled(request, engine_scores(request))
    body = b"".join(wire_json.json_chunks(document(result)))
    scale = tokens / few
    encode = best_of(2, lambda: gathered(wire_json.json_chunks(document(result))))
    return Cost(name, len(body) / few, scale * encode, scale * best_of(2, lambda: json.loads(body)))


def sequence(result: ScoreResult) -> SequenceScores:
    """The one completion as a dialect has it."""
    extras: Any = result.extras
    ids = np.ones(len(result.logprobs) + 1, np.int32)
    ranks = np.zeros(len(result.logprobs), np.int32)
    empty = np.empty((len(result.logprobs), 0), np.float32)
    return SequenceScores(ids, 1, result.logprobs, ranks, extras["top_ids"], extras["top_logprobs"], empty, None)


def vllm(result: ScoreResult) -> Any:
    """`prompt_logprobs`."""
    strings = dict.fromkeys(range(VOCAB), " token")
    return {"choices": [{"prompt_logprobs": prompt_logprobs(sequence(result), strings)}]}


def sglang(result: ScoreResult) -> Any:
    """`input_top_logprobs`."""
    scores = sequence(result)
    top = scores.top_ids.shape[1]
    entries = in_steps(chain([None], best_entries(scores, top, {})), figures=3 * top)
    return {"meta_info": {"input_top_logprobs": entries}}


def costs(tokens: int, k: int) -> list[Cost]:
    """All ways for one k."""
    return [
        native(tokens, k, "float32"),
        native(tokens, k, "float16"),
        in_json(tokens, k, "native JSON", result_object),
        in_json(tokens, k, "SGLang's JSON", sglang),
        in_json(tokens, k, "vLLM's prompt_logprobs", vllm),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 16, 64, 256])
    asked = parser.parse_args()
    out = sys.stdout
    out.write(
        f"{asked.tokens} tokens\n\n| k | wire | bytes a token | encode, ms | decode, ms | server's peak, answers |\n"
    )
    out.write("|---:|---|---:|---:|---:|---:|\n")
    for k in asked.k:
        for cost in costs(asked.tokens, k):
            peak = f"{cost.peak:.2f}" if cost.peak else ""
            out.write(f"| {k} | {cost.name} | {cost.bytes:,.0f} | {cost.encode:,.1f} | {cost.decode:,.1f} | {peak} |\n")
            out.flush()


if __name__ == "__main__":
    main()
