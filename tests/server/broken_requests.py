"""Requests with one fault each, in both encodings, and what the answer must say."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS
from safetensors.numpy import save
from server_fakes import MAX_LENGTH, VOCAB

MAX_BYTES = 100_000


OTHER_PRINT = "ab" * 32


@dataclass(frozen=True)
class Broken:
    """name: what is wrong. body, media: what is sent. Then what must come back: the remedy is a piece of the message."""

    name: str
    body: bytes
    status: int
    param: str | None
    remedy: str
    media: str | None = MEDIA_JSON
    headers: dict[str, str] = field(default_factory=dict)


def good() -> dict[str, Any]:
    return {"groups": [{"prompt": [1, 2, 3], "completions": [[4, 5], [6]]}]}


def in_json(name: str, status: int, param: str | None, remedy: str, **change: Any) -> Broken:
    """The good request with some top-level fields changed."""
    return Broken(name, json.dumps({**good(), **change}).encode(), status, param, remedy)


def in_group(name: str, status: int, param: str | None, remedy: str, **change: Any) -> Broken:
    """The good request with some fields of its group changed; None takes a field out."""
    group = {**good()["groups"][0], **change}
    message = {"groups": [{k: v for k, v in group.items() if v is not None}]}
    return Broken(name, json.dumps(message).encode(), status, param, remedy)


def arrays() -> dict[str, np.ndarray]:
    return {
        "prompt_ids": np.array([1, 2, 3], np.int32),
        "prompt_lengths": np.array([3], np.int32),
        "completion_ids": np.array([4, 5, 6], np.int32),
        "completion_lengths": np.array([2, 1], np.int32),
        "group_sizes": np.array([2], np.int32),
        "temperature": np.array([1.0], np.float32),
    }


def in_tensors(
    name: str,
    status: int,
    param: str | None,
    remedy: str,
    metadata: dict[str, str] | None = None,
    **change: np.ndarray | None,
) -> Broken:
    """The good request with some tensors changed; None takes one out."""
    tensors = {k: v for k, v in {**arrays(), **change}.items() if v is not None}
    return Broken(name, save(tensors, metadata), status, param, remedy, MEDIA_TENSORS)


def raw_tensors(name: str, status: int, param: str | None, remedy: str, body: bytes) -> Broken:
    return Broken(name, body, status, param, remedy, MEDIA_TENSORS)


def container(header: dict[str, Any], data: bytes) -> bytes:
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


I32, F32 = np.int32, np.float32


GOOD_JSON, GOOD_TENSORS = json.dumps(good()).encode(), save(arrays())


CODE = b"cos\nsystem\n(S'true'\ntR."  # a pickle: must never be looked at


BROKEN = [
    # --- JSON: not a message at all
    Broken("empty body", b"", 400, None, "send a request"),
    Broken("truncated JSON", GOOD_JSON[:-5], 400, None, "cut off"),
    Broken("not JSON", b"\x80\x04 what", 400, None, "not valid JSON"),
    Broken("a list at the top", b"[]", 400, None, "must be a JSON object"),
    Broken("nested a thousand deep", b'{"groups":' + b"[" * 1000 + b"]" * 1000 + b"}", 400, None, "not valid JSON"),
    Broken("not UTF-8", b'{"groups": "\xff\xfe"}', 400, None, "not valid JSON"),
    # --- JSON: fields
    Broken("groups missing", b"{}", 400, "groups", "send {"),
    in_json("groups null", 400, "groups", "must be a list", groups=None),
    in_json("no groups", 422, "groups", "at least one", groups=[]),
    in_json("a group that is a list", 400, "groups[0]", "must be an object", groups=[[1]]),
    in_json("unknown field", 400, "max_tokens", "known here: groups", max_tokens=5),
    in_group("unknown field in a group", 400, "groups[0].promt", "known here: prompt", promt=[1]),
    in_group("prompt missing", 400, "groups[0].prompt", "either prompt or messages", prompt=None),
    in_group("prompt and messages", 400, "groups[0].prompt", "either prompt or messages", messages=[]),
    in_group("completions missing", 400, "groups[0].completions", "must be a list", completions=None),
    in_group("completions flat", 400, "groups[0].completions[0]", "must be a list of token ids", completions=[4, 5]),
    in_group("no completions", 422, "groups[0].completions", "at least one", completions=[]),
    in_group("empty prompt", 422, "groups[0].prompt", "prepend the BOS", prompt=[]),
    in_group("an id as float", 400, "groups[0].prompt[1]", "whole numbers", prompt=[1, 2.5]),
    in_group("an id as true", 400, "groups[0].completions[0][0]", "whole numbers", completions=[[True]]),
    in_group("an id as string", 400, "groups[0].prompt[0]", "whole numbers", prompt=["1"]),
    in_group("text beside ids", 400, "groups[0].completions[0]", "all text or all ids", prompt="text"),
    in_group("negative id", 422, "groups[0].completions[0][1]", "from 0", completions=[[4, -1]]),
    in_group("id beyond int32", 422, "groups[0].prompt[0]", "from 0", prompt=[2**40]),
    in_group("id outside the vocabulary", 422, "groups[0].completions[1]", "0 to 99", completions=[[4], [VOCAB]]),
    in_group(
        "over the context length", 413, "groups[0].completions[0]", "shorten", completions=[[4] * (MAX_LENGTH - 2)]
    ),
    in_json("temperature zero", 422, "temperature", "above 0", temperature=0),
    in_json("temperature negative", 422, "temperature", "above 0", temperature=-1.0),
    in_json("temperature NaN", 422, "temperature", "finite", temperature=float("nan")),
    in_json("temperature infinite", 422, "temperature", "finite", temperature=float("inf")),
    in_json("temperature that is 0 in fp32", 422, "temperature", "above 0", temperature=1e-60),
    in_json("temperature as string", 400, "temperature", "must be a number", temperature="1"),
    in_json("two temperatures for one group", 400, "temperature", "one per group", temperature=[1.0, 2.0]),
    in_json("NaN among temperatures", 422, "temperature[0]", "finite", temperature=[float("nan")]),
    in_json("unknown normalizer", 400, "normalizer", "softmax", normalizer="hardmax"),
    in_json("unknown extra", 400, "return[1]", "choose from", **{"return": ["rank", "attention"]}),
    in_json("extra given twice", 400, "return[1]", "once", **{"return": ["rank", "rank"]}),
    in_json("extras as string", 400, "return", "list", **{"return": "rank"}),
    in_json("top_k negative", 422, "top_k", "0 (none) or more", top_k=-1),
    in_json("top_k as float", 400, "top_k", "whole number", top_k=1.5),
    in_json("top_k too large", 422, "top_k", "at most 8", top_k=9),
    in_json("token_ids for too few groups", 400, "token_ids", "one per group", token_ids=[]),
    in_json("token_ids ragged", 400, "token_ids[0][0][1]", "equally many", token_ids=[[[[1], [1, 2]], [[1]]]]),
    in_json("token_ids outside", 422, "token_ids[0][0]", "0 to 99", token_ids=[[[[1], [VOCAB]], [[1]]]]),
    in_json("too many token_ids", 422, "token_ids", "at most 8", token_ids=[[[[1] * 9] * 2, [[1] * 9]]]),
    in_json("fingerprint of nothing", 409, "fingerprint", "GET /v1/reference", fingerprint="latest"),
    in_json("fingerprint as number", 400, "fingerprint", "GET /v1/reference", fingerprint=7),
    in_json("fingerprint of another", 409, "fingerprint", "pin what", fingerprint=OTHER_PRINT),
    in_group(
        "messages without role",
        400,
        "groups[0].messages[0]",
        "role",
        prompt=None,
        messages=[{"content": ""}],
        completions=["x"],
    ),
    in_group("messages beside ids", 400, "groups[0].completions[0]", "all text", prompt=None, messages=[{}]),
    in_group(
        "messages that the template cannot render",
        422,
        "groups[0].messages",
        "chat template",
        prompt=None,
        messages=[{"role": "user", "content": 3}],
        completions=["x"],
    ),
    in_group("a lone surrogate", 400, None, "not valid JSON", prompt="\ud800", completions=["x"]),
    # --- safetensors: not a message at all
    raw_tensors("empty tensors", 400, None, "send a request", b""),
    raw_tensors("truncated tensors", 400, None, "cut off", GOOD_TENSORS[:-3]),
    raw_tensors("truncated header", 400, None, "safetensors", GOOD_TENSORS[:20]),
    raw_tensors("a header of an exabyte", 413, None, "safetensors", struct.pack("<Q", 2**60) + b"{}"),
    raw_tensors("a pickle", 413, None, "safetensors", CODE),
    raw_tensors("JSON sent as tensors", 413, None, "safetensors", GOOD_JSON),
    raw_tensors(
        "offsets that lie",
        400,
        None,
        "does not hold the tensors",
        container({"prompt_ids": {"dtype": "I32", "shape": [9], "data_offsets": [0, 4]}}, b"\0" * 4),
    ),
    Broken("tensors sent as JSON", GOOD_TENSORS, 400, None, "not valid JSON"),
    # --- safetensors: tensors
    in_tensors("tensor missing", 400, "completion_lengths", "int32", completion_lengths=None),
    in_tensors("unknown tensor", 400, "attention_mask", "known", attention_mask=np.ones(3, I32)),
    in_tensors("ids as int64", 400, "prompt_ids", "int32", prompt_ids=np.array([1, 2, 3], np.int64)),
    in_tensors("temperature as float64", 400, "temperature", "float32", temperature=np.array([1.0])),
    in_tensors("ids in two dimensions", 400, "prompt_ids", "dimension", prompt_ids=np.array([[1, 2, 3]], I32)),
    in_tensors("prompt lengths do not add up", 400, "prompt_lengths", "adds up", prompt_lengths=np.array([2], I32)),
    in_tensors(
        "completion lengths do not add up",
        400,
        "completion_lengths",
        "adds up",
        completion_lengths=np.array([2, 2], I32),
    ),
    in_tensors("group sizes do not add up", 400, "group_sizes", "adds up", group_sizes=np.array([3], I32)),
    in_tensors("negative length", 422, "completion_lengths[1]", "0 or more", completion_lengths=np.array([4, -1], I32)),
    in_tensors(
        "lengths that overflow int32",
        400,
        "completion_lengths",
        "adds up",
        completion_lengths=np.array([2**31 - 1, 2**31 - 1], I32),
    ),
    in_tensors("NaN temperature", 422, "temperature[0]", "finite", temperature=np.array([np.nan], F32)),
    in_tensors("temperature zero, tensors", 422, "temperature[0]", "above 0", temperature=np.array([0], F32)),
    in_tensors("too many temperatures", 400, "temperature", "one per group", temperature=np.ones(2, F32)),
    in_tensors("id outside, tensors", 422, "groups[0].prompt", "0 to 99", prompt_ids=np.array([1, VOCAB, 3], I32)),
    in_tensors("negative id, tensors", 422, "groups[0].prompt", "0 or more", prompt_ids=np.array([1, -7, 3], I32)),
    in_tensors(
        "empty prompt, tensors",
        422,
        "groups[0].prompt",
        "prepend the BOS",
        prompt_ids=np.empty(0, I32),
        prompt_lengths=np.array([0], I32),
    ),
    in_tensors(
        "over the context length, tensors",
        413,
        "groups[0].completions[0]",
        "shorten",
        completion_ids=np.full(MAX_LENGTH, 4, I32),
        completion_lengths=np.array([MAX_LENGTH, 0], I32),
    ),
    in_tensors("token_ids of the wrong length", 400, "completion_lengths", "token_ids", token_ids=np.ones((2, 1), I32)),
    in_tensors("unknown metadata", 400, "beta", "known", {"beta": "1"}),
    in_tensors("top_k in words", 400, "top_k", "whole number", {"top_k": "five"}),
    in_tensors("unknown normalizer, tensors", 400, "normalizer", "softmax", {"normalizer": "hardmax"}),
    in_tensors("unknown extra, tensors", 400, "return[0]", "choose from", {"return": "attention"}),
    in_tensors("fingerprint of another, tensors", 409, "fingerprint", "pin what", {"fingerprint": OTHER_PRINT}),
    # --- HTTP around it
    Broken("no content type", GOOD_JSON, 415, "Content-Type", f"send {MEDIA_JSON}", None),
    Broken("curl's content type", GOOD_JSON, 415, "Content-Type", "send", "application/x-www-form-urlencoded"),
    Broken("a content type of nothing", GOOD_JSON, 415, "Content-Type", "send", ";;;"),
    Broken("an answer in XML", GOOD_JSON, 406, "Accept", "answers in", headers={"Accept": "application/xml"}),
    Broken("an answer in nothing", GOOD_JSON, 406, "Accept", "answers in", headers={"Accept": "*/*;q=0"}),
    Broken("body too long", b" " * (MAX_BYTES + 1), 413, "body", "--max-request-bytes"),
    Broken("body too long, tensors", b"\0" * (MAX_BYTES + 1), 413, "body", "--max-request-bytes", MEDIA_TENSORS),
]
