"""The API in a browser: Swagger UI at /docs, from this process and from nowhere else.

Script and style come with the package fastapi-swagger. The page holds no script and no style of its own, so that its policy
can forbid both: what somebody smuggles into a description stays text. Nothing here needs a model or a key.
"""

from __future__ import annotations

from html import escape
from importlib.resources import as_file, files

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi_swagger import resources

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_GUARDED = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>grpo-refserver: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{root}/docs/swagger-ui.css">
</head>
<body>
<div id="api" data-document='{root}/openapi.json'></div>
<script src="{root}/docs/swagger-ui-bundle.js"></script>
<script src="{root}/docs/start.js"></script>
</body>
</html>
"""
_START = """const api = document.getElementById("api");
SwaggerUIBundle({url: api.dataset.document, domNode: api, deepLinking: true, validatorUrl: null});
"""

router = APIRouter(include_in_schema=False)


@router.get("/docs")
@router.get("/redoc")  # where users of FastAPI look too
async def page(request: Request) -> HTMLResponse:
    """Every route, with its fields, to try out."""
    root = escape(request.scope.get("root_path", "").rstrip("/"), quote=True)
    return HTMLResponse(_PAGE.format(root=root), headers={"Content-Security-Policy": _POLICY, **_GUARDED})


@router.get("/docs/start.js")
async def start() -> Response:
    return Response(_START, media_type="text/javascript", headers=_GUARDED)


@router.get("/docs/swagger-ui-bundle.js")
async def script() -> FileResponse:
    return _packaged("swagger-ui-bundle.js", "text/javascript")


@router.get("/docs/swagger-ui.css")
async def style() -> FileResponse:
    return _packaged("swagger-ui.css", "text/css")


def _packaged(name: str, media_type: str) -> FileResponse:
    with as_file(files(resources) / name) as path:
        return FileResponse(path, media_type=media_type, headers={"Cache-Control": "max-age=3600", **_GUARDED})
