"""A tiny policy on disk, and a reference server that speaks the protocol: a real model, real HTTP, no mocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grpo_client import ReferenceInfo, ScoreRequest, ScoreResult, wire_tensors
from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS
from grpo_training.config import TrainConfig
from grpo_training.rollouts.rollout import Rollout
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from .fake_uploads import FakeUploads

EOS = 2


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; the padding token is the end-of-sequence token, as in many real models."""
    characters = "\n !?.,:'+-*/=()0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    vocab = {"<unk>": 0, "<s>": 1, "</s>": EOS} | {c: i for i, c in enumerate(characters, start=3)}
    tokens = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.pad_token = fast.eos_token
    fast.chat_template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}assistant:"
    return fast


@pytest.fixture(scope="session")
def tiny(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Two layers, grouped queries, tied embedding; drawn wide enough that its distributions are far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=EOS,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_path(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def ragged() -> Rollout:
    """Two prompts of unequal length, two completions each, from one token to six."""
    prompts, lengths = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]], torch.tensor([4, 1, 6, 3])
    ids = torch.randint(3, 80, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < lengths[:, None]
    zeros = torch.zeros(4, 6)
    return Rollout(prompts, 2, ids.where(mask, 0), mask, zeros, zeros, mask[:, 0])


@pytest.fixture
def make_config(tiny_path: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A short run on the tiny model: `make_config(url, loss={"beta": 0.1}, trainer={"steps": 3})`."""

    def make(url: str = "http://127.0.0.1:9", **sections: dict[str, object]) -> TrainConfig:
        values: dict[str, dict[str, object]] = {
            "model": {"name": str(tiny_path), "device": "cpu"},
            "reference": {"urls": [url], "max_wait": 60},
            "task": {
                "name": "basic_arithmetic",
                "kwargs": {"min_terms": 2, "max_terms": 2, "max_digits": 1, "seed": 1, "size": 50},
                "chat": False,
                "reward": "graded",
                "answer_pattern": r"\d",
            },
            "rollout": {"prompts_per_step": 4, "group_size": 4, "max_new_tokens": 6},
            "optimizer": {"lr": 1e-3},
            "trainer": {
                "steps": 4,
                "output": str(tmp_path / "run"),
                "checkpoint_every": 0,
                "tensorboard": False,
                "save_model": False,
            },
        }
        for name, fields in sections.items():
            values.setdefault(name, {}).update(fields)
        return TrainConfig.model_validate(values)

    return make


@pytest.fixture
def varied_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Fields of `task`: a reward of seven values, so that hardly a group of the tiny model's gibberish is flat."""
    (tmp_path / "varied_reward.py").write_text("def seven(answer, entry):\n    return sum(map(ord, answer)) % 7 / 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"reward": "varied_reward:seven", "answer_pattern": None}


class TinyReference:
    """A reference server on a free port, scoring one row at a time with a plain forward; stops and starts again.

    before_answer is called ahead of each scoring answer with the number of those before it; whoever sets it may stop
    the server there, which drops that answer. refuses: the status that every request gets in place of an answer.
    """

    def __init__(self, model: PreTrainedModel, name: str = "tiny") -> None:
        self.model = model
        self.info = ReferenceInfo(
            model=name,
            fingerprint=f"fingerprint-of-{name}",
            version=0,
            dtype="float32",
            mode="exact",
            max_length=256,
            vocab_size=model.config.vocab_size,
        )
        self.requests: list[ScoreRequest] = []
        self.uploads = FakeUploads()
        self.moves: list[tuple[str, float]] = []
        self.before_answer: Callable[[int], bool] = lambda _: True
        self.refuses: int | None = None
        self.tokenizer: PreTrainedTokenizerFast | None = None
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"reference": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @torch.no_grad()
    def move(self, path: str, decay: float) -> None:
        """What a server does at /admin/reference: decay 0 is a swap."""
        source = path if path != "upload:1" else str(self.uploads.path)
        other = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval().state_dict()
        own = self.model.state_dict()
        self.model.load_state_dict({name: torch.lerp(other[name], own[name], decay) for name in own})
        self.moves.append((path, decay))
        name = f"{self.info.fingerprint.partition('@')[0]}@{len(self.moves)}"
        self.info = self.info.model_copy(update={"version": self.info.version + 1, "fingerprint": name})

    @torch.no_grad()
    def score(self, request: ScoreRequest) -> ScoreResult:
        flat = [
            self._row(group.prompt.tolist(), completion.tolist(), group.temperature)
            for group in request.groups
            for completion in group.completions
        ]
        logprobs, asked = torch.cat(flat).numpy(), request.completion_mask
        return ScoreResult(
            reference=self.info,
            normalizer=request.normalizer,
            temperature=np.array([g.temperature for g in request.groups], dtype=np.float32),
            group_sizes=request.group_sizes,
            completion_lengths=request.completion_lengths,
            logprobs=logprobs if asked is None else np.where(asked, logprobs, np.float32(np.nan)),
            status=np.zeros(len(flat), dtype=np.uint8),
            completion_mask=asked,
            extras=self._extras(request),
        )

    def _extras(self, request: ScoreRequest) -> dict[str, np.ndarray]:
        """The best tokens, the asked ids and the mass outside either, from whole rows of log-probs."""
        extras: dict[str, torch.Tensor] = {}
        if not request.top_k and all(group.token_ids is None for group in request.groups):
            return {}
        full = torch.cat(
            [
                self._logprobs(group.prompt.tolist(), completion.tolist(), group.temperature)
                for group in request.groups
                for completion in group.completions
            ]
        )
        if request.top_k:
            extras["top_logprobs"], best = full.topk(request.top_k)
            extras["top_ids"], extras["top_tail"] = best.int(), _outside(full, best)
        if request.groups[0].token_ids is not None:
            asked = torch.cat([torch.tensor(ids) for g in request.groups for ids in g.token_ids or ()]).long()
            at = full.gather(1, asked.clamp(min=0))
            extras["token_logprobs"], extras["token_tail"] = (
                at.masked_fill(asked < 0, -torch.inf),
                _outside(full, asked),
            )
        return {name: x.numpy() for name, x in extras.items() if "tail" in request.extras or "tail" not in name}

    def _row(self, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
        return self._logprobs(prompt, completion, temperature)[torch.arange(len(completion)), completion]

    def _logprobs(self, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
        logits = self.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        return (logits / temperature).log_softmax(-1)


def _outside(full: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    inside = torch.zeros_like(full, dtype=torch.bool)
    rows = torch.arange(len(ids))[:, None].expand_as(ids)
    inside[rows[ids >= 0], ids[ids >= 0]] = True
    return full.masked_fill(inside, -torch.inf).logsumexp(-1)


class _Handler(BaseHTTPRequestHandler):
    reference: TinyReference
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.reference.refuses is not None:
            body = json.dumps({"error": {"message": "not you, not here"}}).encode()
            self._answer(body, MEDIA_JSON, self.reference.refuses)
            return
        body = b"{}" if self.path == "/readyz" else self.reference.info.model_dump_json().encode()
        self._answer(body, MEDIA_JSON)

    def do_POST(self) -> None:
        if self.path == "/detokenize":
            self._detokenize()
            return
        if self.path == "/admin/uploads":
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(json.dumps(self.reference.uploads.begin(asked)).encode(), MEDIA_JSON, 201)
            return
        if self.path.startswith("/admin/reference"):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers["Authorization"] != "Bearer root":
                self._answer(b"{}", MEDIA_JSON, 401)
                return
            self.reference.move(asked["model"], asked.get("decay", 0.0))
            self._answer(self.reference.info.model_dump_json().encode(), MEDIA_JSON)
            return
        request = wire_tensors.decode_request(self.rfile.read(int(self.headers["Content-Length"])))
        number = len(self.reference.requests)
        self.reference.requests.append(request)
        if self.reference.before_answer(number):
            self._answer(wire_tensors.encode_result(self.reference.score(request)), MEDIA_TENSORS)
        else:
            self.close_connection = True  # the answer is lost on the way

    def do_PUT(self) -> None:
        piece = self.rfile.read(int(self.headers["Content-Length"]))
        name, offset = self.path.rpartition("/")[2], int(self.headers["Upload-Offset"])
        self._answer(json.dumps(self.reference.uploads.append(name, offset, piece)).encode(), MEDIA_JSON)

    def _detokenize(self) -> None:
        ids = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["tokens"]
        if self.reference.tokenizer is None:
            self._answer(json.dumps({"error": {"message": "no tokenizer"}}).encode(), MEDIA_JSON, 404)
            return
        text = self.reference.tokenizer.decode(ids, skip_special_tokens=False)
        self._answer(json.dumps({"prompt": text}).encode(), MEDIA_JSON)

    def _answer(self, body: bytes, media: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def reference_server(tiny_path: Path) -> Iterator[TinyReference]:
    """Holds a model of its own, so that training the policy cannot move it."""
    server = TinyReference(AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float32).eval())
    yield server
    server.stop()


@pytest.fixture
def on_two_ranks(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a script of tests/training/ranks by torchrun as two CPU processes; returns the JSON that rank 0 left."""

    def run(script: str, *arguments: object) -> dict[str, Any]:
        answer = tmp_path / f"{script}.json"
        path = Path(__file__).with_name("ranks") / f"{script}.py"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(
            [*command, str(path), str(answer), *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(answer.read_text())

    return run
