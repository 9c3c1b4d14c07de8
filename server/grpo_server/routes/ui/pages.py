"""The inspector's pages: one HTML document at four addresses, so that a page can follow another without a reload, which would
forget the key; and the files that it fetches. They hold nothing secret, need no key and no model, and name no other host.

The policy allows scripts and styles from here alone, and no string to become one (Trusted Types).
"""

from __future__ import annotations

from functools import cache
from html import escape

from fastapi import APIRouter, Request, Response

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes.ui.assets import PAGE, Asset, assets

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked after each time: a new server has new files
    "Vary": "Accept-Encoding",
}

router = APIRouter(include_in_schema=False)


@router.get("/ui")
@router.get("/ui/")
@router.get("/ui/softmax")
@router.get("/ui/runs")
@router.get("/ui/server")
async def page(request: Request) -> Response:
    """The document; which page it shows, it reads from its own address."""
    return _answer(request, _page(request.scope.get("root_path", "").rstrip("/")))


@router.get("/ui/files/{name:path}")
async def file(request: Request, name: str) -> Response:
    """One file of it."""
    found = assets().get(name)
    if found is None or name == PAGE:
        raise ServiceError(ErrorCode.NOT_FOUND, "there is no such file; /ui shows the inspector")
    return _answer(request, found)


@cache
def _page(root: str) -> Asset:
    """root: the prefix under which a proxy publishes the server."""
    document = assets()[PAGE]
    text = document.content.decode().replace("{root}", escape(root, quote=True))
    return Asset.of(text.encode(), document.media_type)


def _answer(request: Request, asset: Asset) -> Response:
    headers = {**HEADERS, "ETag": asset.etag}
    tags = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if asset.etag in tags or "*" in tags:
        return Response(status_code=304, headers=headers)
    if _takes_gzip(request.headers.get("accept-encoding", "")):
        return Response(asset.packed, media_type=asset.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(asset.content, media_type=asset.media_type, headers=headers)


def _takes_gzip(accepted: str) -> bool:
    for coding in accepted.lower().split(","):
        name, _, weight = coding.partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
