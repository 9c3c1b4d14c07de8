"""The native message as safetensors: 4 bytes a token and 4 bytes a score, bit for bit, no code run on load.

A request is the int32 vectors `prompt_ids`, `prompt_lengths` (K,), `completion_ids` (N,), `completion_lengths` (S,),
`group_sizes` (K,), optionally `temperature` (K,) float32, `token_ids` (N, k) int32 and `completion_mask`
(N,) uint8, 0 where nothing is asked; the header's metadata holds
`normalizer`, `return` (names with commas between), `top_k` and `fingerprint`, each optional, as strings.

An answer is `logprobs` (N,) float32, `status` (S,) uint8, the lengths and temperature again, and each extra as its own
tensor; the metadata holds `reference` and `usage` as JSON. To a request with a mask it repeats `completion_mask`; log-probs are
NaN where nothing was asked, and the extras have rows for the other positions alone.
"""

from grpo_client.wire_tensors.request import decode_request, encode_request, request_of_arrays
from grpo_client.wire_tensors.result import decode_result, encode_result, result_chunks

__all__ = ["decode_request", "decode_result", "encode_request", "encode_result", "request_of_arrays", "result_chunks"]
