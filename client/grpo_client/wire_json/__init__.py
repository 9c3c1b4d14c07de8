"""The native message as JSON: for curl, for people, for languages without a tensor library, and for text prompts.

Shapes are those of the API reference. What JSON cannot say and how it is said: a non-finite figure is `null` (read back
as NaN; the completion's status tells), and an fp32 figure is written with nine significant digits at most, which read
back to the same bits.

Strict, and meant for requests of 100,000 tokens and more: the parser is pydantic-core's, ids are checked and converted
thousands at once, and only an error pays for finding out where it is. A large body is read and written in short steps
(`reader`, `writer`), so that the thread beside it, an event loop say, is not kept waiting.
"""

from grpo_client.wire_json.reader import read_json
from grpo_client.wire_json.request import decode_request, encode_request
from grpo_client.wire_json.result import decode_result
from grpo_client.wire_json.result_writer import encode_result, result_chunks
from grpo_client.wire_json.writer import json_bytes, json_chunks

__all__ = [
    "decode_request",
    "decode_result",
    "encode_request",
    "encode_result",
    "json_bytes",
    "json_chunks",
    "read_json",
    "result_chunks",
]
