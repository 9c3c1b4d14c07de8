"""A server with the OpenAI completions API around a tiny model, over a real socket: the tests' stand-in for vLLM.

It can be told to be one that lacks an option, and to load other weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import uvicorn
from fastapi import Body, FastAPI, Header
from fastapi.responses import JSONResponse
from grpo_training.rollouts.generation import sample
from transformers import AutoModelForCausalLM, PreTrainedModel

PATIENCE = 30.0  # seconds that a test waits for another thread before it fails


class CompletionsServer:
    """ids: where an answer holds token ids. scaled: log-probs of the asked temperature, or those of 1, as vLLM's are.

    before_answer: called with each request; it may wait.
    """

    def __init__(self, path: Path, eos_ids: frozenset[int]) -> None:
        self.model = self._load(path)
        self.eos_ids = eos_ids
        self.ids: Literal["token_ids", "tokens", "none"] = "token_ids"
        self.scaled = True
        self.before_answer: Callable[[dict[str, Any]], None] = lambda _: None
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.loaded: list[str] = []
        self._lock = threading.Lock()
        config = uvicorn.Config(self._app(), host="127.0.0.1", port=0, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> CompletionsServer:
        started = threading.Event()
        startup = self._server.startup

        async def and_tell(*args: Any, **kwargs: Any) -> None:
            await startup(*args, **kwargs)
            started.set()

        self._server.startup = and_tell  # type: ignore[method-assign]
        self._thread.start()
        assert started.wait(PATIENCE)
        self._port = self._server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        [prompt] = body["prompt"]
        rollout = sample(
            self.model,
            [prompt],
            group_size=body["n"],
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            eos_ids=self.eos_ids,
            seed=body["seed"],
        )
        [group] = rollout.completions()
        scores = rollout.logprobs if self.scaled else self._unscaled(prompt, group, rollout.logprobs)
        choices = []
        for i, ids in enumerate(group):
            told = [f"token_id:{t}" if self.ids == "tokens" else "x" for t in ids]
            choice: dict[str, Any] = {
                "index": i,
                "text": "never read",
                "finish_reason": "stop" if rollout.ended[i] else "length",
                "logprobs": {"tokens": told, "token_logprobs": scores[i, : len(ids)].tolist()},
            }
            choices.append(choice | ({"token_ids": ids, "prompt_token_ids": prompt} if self.ids == "token_ids" else {}))
        return {"object": "text_completion", "choices": choices[::-1]}  # in no particular order

    @torch.no_grad()
    def _unscaled(self, prompt: list[int], group: list[list[int]], like: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros_like(like)
        for i, ids in enumerate(group):
            logits = self.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            scores[i, : len(ids)] = logits.log_softmax(-1)[torch.arange(len(ids)), ids]
        return scores

    def _load(self, path: Path | str) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/completions")
        def completions(
            body: Annotated[dict[str, Any], Body()], authorization: Annotated[str | None, Header()] = None
        ) -> JSONResponse:
            self.before_answer(body)
            with self._lock:
                self.requests.append(body)
                self.authorizations.append(authorization)
                return JSONResponse(self.answer(body))

        @app.post("/reload")
        def reload(body: Annotated[dict[str, Any], Body()]) -> JSONResponse:
            with self._lock:
                self.model = self._load(body["model_path"])
                self.loaded.append(body["model_path"])
                return JSONResponse({})

        return app
