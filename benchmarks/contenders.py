"""Who is measured: each takes a ScoreRequest and returns (N,) log-probs in the request's order.

ours        the server over HTTP (safetensors), and its engine in process
plain       transformers, right-padded, logits of the completion's rows only
trl         transformers with TRL's fused LM head, right-padded (needs `trl`)
vllm        `prompt_logprobs` of a vLLM server that runs already
gemm        nothing but the matrix products that the packed batch cannot avoid: a floor, not a contender
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import httpx
import numpy as np
import torch
import torch.nn.functional as F
from grpo_client import DeadlineExceeded, ReferenceClient
from grpo_client.models.demo import locate
from grpo_client.protocol import ScoreRequest
from grpo_numerics.heap import keep_freed_pages
from grpo_server.engine import EngineConfig, Piece, environment, load_engine
from grpo_server.engine.config import DType, Mode
from transformers import AutoModelForCausalLM, PreTrainedModel

Score = Callable[[ScoreRequest], np.ndarray]
# Sequences a padded forward takes at a time: what a trainer's micro-batch would be, and the best of 4, 8, 16 and 32 here.
MICRO_BATCH = 8


@contextmanager
def server(*flags: str) -> Iterator[tuple[str, int]]:
    """A grpo-server process on a free port: (base URL, process id). It serves the demo model, unless flags name another; the
    result cache is off."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "grpo_server",
        *(() if "--model" in flags else ("--model", "demo")),
        "--port",
        str(port),
        "--cache-bytes",
        "0",
        *flags,
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ)
    try:
        with ReferenceClient(f"http://127.0.0.1:{port}") as client:
            while process.poll() is None:  # a server that cannot start has said why on stderr
                try:
                    client.wait_ready(timeout=5)
                    break
                except DeadlineExceeded:
                    continue
            else:
                raise RuntimeError(f"grpo-server ended with status {process.returncode}: {' '.join(command)}")
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextmanager
def over_http(url: str, encoding: str = "tensors") -> Iterator[Score]:
    """The client a trainer would use."""
    with ReferenceClient(url, encoding=encoding, timeout=1200) as client:  # pyright: ignore[reportArgumentType]
        yield lambda request: client.score_request(request).logprobs


def in_process(mode: Mode, dtype: DType = "auto") -> Score:
    """The engine without HTTP."""
    engine = load_engine(EngineConfig("demo", mode=mode, dtype=dtype))

    def score(request: ScoreRequest) -> np.ndarray:
        pieces = [Piece(g.prompt, g.completions, g.temperature) for g in request.groups]
        return np.concatenate([p.logprobs for p in engine.compute(engine.prepare(pieces)).pieces])

    return score


@contextmanager
def in_own_process(mode: Mode) -> Iterator[Score]:
    """The same in another process: the environment that the engine computes in is not that of its peers."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_answer, args=(mode, theirs), daemon=True)
    before = dict(os.environ)
    environment.set_environment(mode)  # for the child to find before it imports torch
    process.start()
    os.environ.clear()
    os.environ.update(before)

    def score(request: ScoreRequest) -> np.ndarray:
        ours.send(request)
        return ours.recv()

    try:
        yield score
    finally:
        ours.send(None)
        process.join(60)


def _answer(mode: Mode, pipe: Connection) -> None:
    """Requests to log-probs, by an engine such as `grpo-server` starts, until None comes."""
    keep_freed_pages()
    score = in_process(mode)
    while (request := pipe.recv()) is not None:
        pipe.send(score(request))


def _load(dtype: torch.dtype) -> PreTrainedModel:
    source = locate("demo")
    model = AutoModelForCausalLM.from_pretrained(source.path, gguf_file=source.gguf_file, dtype=dtype)
    return model.eval().requires_grad_(False)


def _padded_batches(request: ScoreRequest) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, list[int]]]:
    """Longest first, so that a micro-batch pads little: (positions, ids, mask, prompt lengths)."""
    sequences = [(g.prompt, c) for g in request.groups for c in g.completions]
    order = sorted(range(len(sequences)), key=lambda i: -sum(map(len, sequences[i])))
    for start in range(0, len(order), MICRO_BATCH):
        chosen = order[start : start + MICRO_BATCH]
        rows = [np.concatenate(sequences[i]) for i in chosen]
        width = max(map(len, rows))
        ids = torch.tensor(np.stack([np.pad(r, (0, width - len(r))) for r in rows])).long()
        mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
        yield chosen, ids, mask, [len(sequences[i][0]) for i in chosen]


def plain(dtype: torch.dtype) -> Score:
    """What a careful trainer does today: padded micro-batches, the head on the completion's rows only."""
    model = _load(dtype)

    @torch.inference_mode()
    def score(request: ScoreRequest) -> np.ndarray:
        answers: dict[int, np.ndarray] = {}
        temperatures = [g.temperature for g in request.groups for _ in g.completions]
        for chosen, ids, mask, prompts in _padded_batches(request):
            keep = ids.shape[1] - min(prompts) + 1
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
            for row, i in enumerate(chosen):
                length, offset = int(mask[row].sum()), ids.shape[1] - keep
                own = logits[row, prompts[row] - 1 - offset : length - 1 - offset].float() / temperatures[i]
                targets = ids[row, prompts[row] : length, None]
                answers[i] = torch.log_softmax(own, -1).gather(1, targets)[:, 0].numpy()
        return np.concatenate([answers[i] for i in sorted(answers)])

    return score


def trl(dtype: torch.dtype) -> Score:
    """TRL's fused head over the same padded micro-batches. Raises ImportError without trl."""
    from trl.trainer.utils import add_fused_lm_head

    model = _load(dtype)
    add_fused_lm_head(model)

    @torch.inference_mode()
    def score(request: ScoreRequest) -> np.ndarray:
        answers: dict[int, np.ndarray] = {}
        for chosen, ids, mask, prompts in _padded_batches(request):
            labels = ids.masked_fill(mask == 0, -100)
            for row, prompt in enumerate(prompts):
                labels[row, :prompt] = -100
            out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
            for row, i in enumerate(chosen):
                answers[i] = out.log_probs[row][labels[row, 1:] != -100].float().numpy()
        return np.concatenate([answers[i] for i in sorted(answers)])

    return score


@contextmanager
def vllm(url: str) -> Iterator[Score]:
    """`prompt_logprobs` of a running vLLM server, every sequence in one request, tokens in."""
    with httpx.Client(base_url=url, timeout=1200) as http:
        model = http.get("/v1/models").raise_for_status().json()["data"][0]["id"]

        def score(request: ScoreRequest) -> np.ndarray:
            sequences = [
                (len(g.prompt), [*g.prompt.tolist(), *c.tolist()]) for g in request.groups for c in g.completions
            ]
            asked = {"model": model, "prompt": [ids for _, ids in sequences], "max_tokens": 1, "prompt_logprobs": 0}
            choices = http.post("/v1/completions", json=asked).raise_for_status().json()["choices"]
            choices.sort(key=lambda choice: choice["index"])
            return np.array(
                [
                    choice["prompt_logprobs"][i][str(ids[i])]["logprob"]
                    for choice, (prompt, ids) in zip(choices, sequences, strict=True)
                    for i in range(prompt, len(ids))
                ],
                np.float32,
            )

        yield score


def gemm_floor(dtype: torch.dtype) -> Score:
    """Every linear layer of the demo model on the rows of the packed batch, and the head on the predicting rows."""
    model = _load(dtype)
    linears = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    engine_rows = {}

    @torch.inference_mode()
    def score(request: ScoreRequest) -> np.ndarray:
        rows = sum(len(g.prompt) + sum(len(c) - 1 for c in g.completions) for g in request.groups)
        wanted = sum(len(c) for g in request.groups for c in g.completions)
        inputs = {n: engine_rows.setdefault((rows, n), torch.randn(rows, n, dtype=dtype)) for n in (576, 1536)}
        for linear in linears:
            F.linear(inputs[linear.in_features], linear.weight)
        hidden = inputs[576][:1].expand(wanted, -1).contiguous()
        for start in range(0, len(model.lm_head.weight), 4096):  # in tiles: all logits at once would not fit
            F.linear(hidden, model.lm_head.weight[start : start + 4096])
        return np.zeros(0, np.float32)

    return score
