"""The right answer: transformers in fp32 in a process of its own, or a grpo-server in exact mode that is trusted.

The process is `python -m grpo_server.oracle MODEL`, so that the client needs no torch. First a line of JSON each way
(texts in, facts out), then native requests and results, each behind its length as a big-endian u32.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from pydantic_core import from_json, to_json

from grpo_client import wire_tensors
from grpo_client.client import ReferenceClient
from grpo_client.http.exchange import Call, raise_for_status
from grpo_client.http.transport import SyncTransport
from grpo_client.probe.cases import TEXTS, Case, Facts
from grpo_client.probe.dialects import Scores, request_of
from grpo_client.settings import ClientSettings

ORACLE_MODULE = "grpo_server.oracle"
LENGTH = struct.Struct(">I")


class OracleFailed(RuntimeError):
    """There is no right answer to compare with; the message says why."""


class Oracle(Protocol):
    """Knows a model's facts and its log-probs."""

    @property
    def facts(self) -> Facts: ...

    def score(self, cases: Sequence[Case], temperature: float = 1.0) -> list[Scores]: ...


@contextmanager
def open_oracle(against: str) -> Generator[Oracle]:
    """against: the URL of an exact grpo-server, or a model as `grpo-server --model` takes it. Raises OracleFailed."""
    if against.startswith(("http://", "https://")):
        with ReferenceClient(against, max_wait=0) as client:
            yield _Server(client, against)
    else:
        with _Process(against) as oracle:
            yield oracle


class _Server:
    def __init__(self, client: ReferenceClient, url: str) -> None:
        info = client.info()
        if info.mode != "exact":
            raise OracleFailed(f"{url} runs in {info.mode} mode; an oracle must run in exact mode, or name a model")
        self._client = client
        settings = ClientSettings.of(url, {})
        http = SyncTransport(settings.transport())

        def post(path: str, **body: Any) -> Any:
            call = Call("POST", path, {"Content-Type": "application/json"}, to_json(body))
            reply = http.send(call, settings.urls[0])
            raise_for_status(reply)
            return from_json(reply.body)

        reply = http.send(Call("GET", "/tokenizer_info"), settings.urls[0])
        raise_for_status(reply)
        eos: Any = from_json(reply.body)["eos_token"]
        self.facts = Facts(
            info.vocab_size,
            info.max_length,
            None if eos is None else post("/tokenize", prompt=eos, add_special_tokens=False)["tokens"][0],
            tuple(tuple(post("/tokenize", prompt=text, add_special_tokens=False)["tokens"]) for text in TEXTS),
        )
        http.close()

    def score(self, cases: Sequence[Case], temperature: float = 1.0) -> list[Scores]:
        result = self._client.score_request(request_of(cases, temperature))
        return [scores.astype(np.float64) for scores in result.ragged()]


class _Process:
    def __init__(self, model: str) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe that nobody reads could fill up
        self._process = subprocess.Popen(
            [sys.executable, "-m", ORACLE_MODULE, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )

    def __enter__(self) -> _Process:
        self._write(json.dumps(TEXTS).encode() + b"\n")
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        facts = from_json(line)
        texts = tuple(tuple(ids) for ids in facts["texts"])
        self.facts = Facts(facts["vocab_size"], facts["max_length"], facts["eos_id"], texts)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.returncode is None:
            self._process.communicate()  # closes stdin, which ends it
        self._said.close()

    def score(self, cases: Sequence[Case], temperature: float = 1.0) -> list[Scores]:
        body = wire_tensors.encode_request(request_of(cases, temperature))
        self._write(LENGTH.pack(len(body)) + body)
        stdout = self._process.stdout
        assert stdout is not None
        head = stdout.read(LENGTH.size)
        if len(head) < LENGTH.size:
            raise self._failure()
        result = wire_tensors.decode_result(stdout.read(LENGTH.unpack(head)[0]))
        return [scores.astype(np.float64) for scores in result.ragged()]

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failure() from error

    def _failure(self) -> OracleFailed:
        self._process.communicate()
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        self._said.close()
        return OracleFailed(lines[-1] if lines else f"the oracle ended with status {self._process.returncode}")
