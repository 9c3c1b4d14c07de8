"""Who may ask /ui/api: this server's own pages, and programs; no page of another site in somebody's browser.

A site that the browser visits can send requests to localhost, and, with a name of its own that it points at 127.0.0.1 after
the page is loaded (DNS rebinding), read the answers of a server without keys as well. Such a request names the site in `Host`,
or says in `Sec-Fetch-Site` or `Origin` that it comes from elsewhere.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import cache
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request

from grpo_server.config import ServerConfig
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._common import ServiceDep

PREFIX = "/ui/api"
_OWN_SITE = ("same-origin", "none")


async def check_site(request: Request, service: ServiceDep) -> None:
    """Dependency. Raises ServiceError (403)."""
    host = request.headers.get("host", "")
    name = _name_of(host)
    if not _is_ours(name, service.config):
        raise ServiceError(
            ErrorCode.CROSS_SITE,
            "the Host of this request is no name of this server; open the page by address or as localhost, or start the server "
            "with --ui-hosts and the name",
            param="Host",
        )
    site = request.headers.get("sec-fetch-site", "none")
    origin = request.headers.get("origin")
    if site not in _OWN_SITE or (origin is not None and urlsplit(origin).netloc.lower() != host.lower()):
        raise ServiceError(
            ErrorCode.CROSS_SITE,
            "this request comes from a page of another site; only /ui may ask here",
            param="Origin",
        )


def api_router() -> APIRouter:
    """A router for what the pages ask: under /ui/api, behind the key, closed to other sites."""
    return APIRouter(prefix=PREFIX, tags=["inspector"], dependencies=[Depends(check_site)])


def _name_of(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:  # such as an address in brackets that is none
        return ""


def _is_ours(name: str, config: ServerConfig) -> bool:
    """An address, localhost, a name without a dot (nobody can register one), this machine's own, or one that was given."""
    if name and "." not in name and ":" not in name:
        return True
    if name.endswith(".localhost") or name in _given(config.host, config.ui_hosts):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@cache
def _given(host: str, more: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name.lower().rstrip(".") for name in (host, socket.gethostname(), *more))
