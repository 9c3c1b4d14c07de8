"""What a decoder accepts at all, before anybody prices it."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_client.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that are refused beyond.

    max_body_bytes: the whole body. max_header_bytes: the safetensors header. max_completions: sequences in a request.
    """

    max_body_bytes: int = 64 * 2**20
    max_header_bytes: int = 2**16
    max_completions: int = 65_536


def check_body(body: bytes, limits: Limits) -> None:
    """Refuse an empty or an overlong body before anything is parsed."""
    if not body:
        raise ProtocolError("the body is empty; send a request as JSON or safetensors", code="empty_body")
    if len(body) > limits.max_body_bytes:
        raise ProtocolError(
            f"the body has {len(body)} bytes and the limit is {limits.max_body_bytes}; "
            "cut the request into smaller ones (grpo_client does so by itself)",
            code="body_too_large",
            status=413,
        )


def check_count(completions: int, limits: Limits) -> None:
    """Refuse more sequences than the limit."""
    if completions > limits.max_completions:
        raise ProtocolError(
            f"{completions} completions in one request; the limit is {limits.max_completions}; cut it into smaller ones",
            "groups",
            code="too_many_completions",
            status=413,
        )
