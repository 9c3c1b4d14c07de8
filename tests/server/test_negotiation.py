"""Content-Type and Accept, as RFC 9110 has them."""

from __future__ import annotations

import pytest
from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._negotiation import media_of, preferred


@pytest.mark.parametrize(
    ("given", "media"),
    [
        ("application/json", MEDIA_JSON),
        ("application/json; charset=utf-8", MEDIA_JSON),
        ("Application/JSON", MEDIA_JSON),
        ("application/x-safetensors", MEDIA_TENSORS),
    ],
)
def test_content_types(given: str, media: str) -> None:
    assert media_of(given) == media


@pytest.mark.parametrize("given", [None, "", "text/plain", "application/octet-stream", "json", "application/json,x"])
def test_other_content_types_are_415(given: str | None) -> None:
    with pytest.raises(ServiceError) as caught:
        media_of(given)
    assert caught.value.code is ErrorCode.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize(
    ("accept", "default", "media"),
    [
        (None, MEDIA_TENSORS, MEDIA_TENSORS),
        ("", MEDIA_JSON, MEDIA_JSON),
        ("*/*", MEDIA_TENSORS, MEDIA_TENSORS),
        ("application/*", MEDIA_JSON, MEDIA_JSON),
        (MEDIA_TENSORS, MEDIA_JSON, MEDIA_TENSORS),
        (f"{MEDIA_JSON};q=0.5, {MEDIA_TENSORS}", MEDIA_JSON, MEDIA_TENSORS),
        (f"{MEDIA_JSON};q=0.5, {MEDIA_TENSORS};q=0.5", MEDIA_JSON, MEDIA_JSON),
        ("text/html, */*;q=0.1", MEDIA_JSON, MEDIA_JSON),
        (f"*/*, {MEDIA_JSON};q=0", MEDIA_JSON, MEDIA_TENSORS),  # the more specific range decides
    ],
)
def test_accept(accept: str | None, default: str, media: str) -> None:
    assert preferred(accept, default) == media


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", f"{MEDIA_JSON};q=nonsense", "application/xml, image/*"])
def test_what_cannot_be_given_is_406(accept: str) -> None:
    with pytest.raises(ServiceError) as caught:
        preferred(accept, MEDIA_JSON)
    assert caught.value.code is ErrorCode.NOT_ACCEPTABLE
