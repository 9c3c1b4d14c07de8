"""The inspector's files as they are served: who may have them, under which policy, and that they are what they should be."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

import httpx
import pytest
from grpo_server.app import create_app
from grpo_server.routes.ui.assets import assets
from server_fakes import FakeEngine, make_config, running, serving

from tools.check_site import Page

PAGES = ("/ui", "/ui/softmax", "/ui/runs", "/ui/server")
FOLDER = Path(__file__).parents[3] / "server/grpo_server/ui"
VENDORED = FOLDER / "vendor"


@pytest.mark.anyio
@pytest.mark.parametrize("path", [*PAGES, "/ui/"])
async def test_a_page_and_its_files_need_no_key_and_come_from_here_alone(
    engine: FakeEngine, tmp_path: Path, path: str
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alpha\n")
    async with serving(engine, api_key_file=keys) as client:
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert answer.text == (await client.get("/ui")).text
        fetched = [url for url in Page(answer.text).fetched if url != "data:,"]
        assert "/ui/files/app.js" in fetched
        for url in fetched:
            part = await client.get(url)
            assert part.status_code == 200, url
            assert part.headers["content-type"].split(";")[0] in ("text/css", "text/javascript")
        assert (await client.get("/ui/api/anything")).status_code == 401
        assert (await client.get("/v1/reference")).status_code == 401


@pytest.mark.anyio
@pytest.mark.parametrize("path", [*PAGES, "/ui/files/app.js", "/ui/files/lib/api.js"])
async def test_the_policy_is_strict_on_every_file(engine: FakeEngine, path: str) -> None:
    async with serving(engine) as client:
        headers = (await client.get(path)).headers
    said = [part.split() for part in headers["content-security-policy"].split(";")]
    policy = {name: sources for name, *sources in said}
    assert (
        policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == ["'none'"]
    )
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == ["'self'"]
    assert policy["require-trusted-types-for"] == ["'script'"]
    assert {s for sources in policy.values() for s in sources} == {"'none'", "'self'", "data:", "blob:", "'script'"}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"
    assert "access-control-allow-origin" not in headers


@pytest.mark.anyio
async def test_a_file_is_sent_once_and_packed(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        whole = await client.get("/ui/files/app.js", headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in whole.headers
        packed = await client.get("/ui/files/app.js", headers={"Accept-Encoding": "br, gzip;q=0.5"})
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.content == whole.content
        refused = await client.get("/ui/files/app.js", headers={"Accept-Encoding": "gzip;q=0"})
        assert "content-encoding" not in refused.headers
        tag = whole.headers["etag"]
        for sent in (tag, f'"other", W/{tag}', "*"):
            again = await client.get("/ui/files/app.js", headers={"If-None-Match": sent})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
            assert "content-security-policy" in again.headers
        assert (await client.get("/ui/files/app.js", headers={"If-None-Match": '"other"'})).status_code == 200
        head = await client.head("/ui")
        assert (head.status_code, head.content) == (200, b"")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    ["/ui/files/../app.py", "/ui/files/%2e%2e/config.py", "/ui/files/index.html", "/ui/files/", "/ui/files/README.md"],
)
async def test_nothing_but_the_listed_files_comes_out(engine: FakeEngine, path: str) -> None:
    async with serving(engine) as client:
        assert (await client.get(path)).status_code == 404


@pytest.mark.anyio
async def test_the_inspector_can_be_left_out(engine: FakeEngine) -> None:
    async with serving(engine, ui=False) as client:
        for path in (*PAGES, "/ui/files/app.js", "/ui/api/pieces"):
            assert (await client.get(path)).status_code == 404


@pytest.mark.anyio
async def test_a_prefix_is_part_of_every_address_and_cannot_break_out(engine: FakeEngine) -> None:
    for root, written in (("/ref", "/ref"), ("/a'b\"<script>c", "/a&#x27;b&quot;&lt;script&gt;c")):
        app = create_app(make_config(), lambda: engine)
        prefixed = httpx.ASGITransport(app, root_path=root)
        async with running(app), httpx.AsyncClient(transport=prefixed, base_url="http://server") as client:
            text = (await client.get("/ui/runs")).text
        assert f'src="{written}/ui/files/app.js"' in text
        assert text.count("<script") == 1


def test_no_script_or_style_stands_in_the_page_and_no_other_host_in_any_file() -> None:
    page = assets()["index.html"].content.decode()
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\son\w+=|\sstyle=", page)
    for name, asset in assets().items():
        if name.startswith("vendor/"):
            continue
        text = asset.content.decode()
        assert not re.findall(r"https?://[^\s\"'`)]+", text), name
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )


def test_vendored_files_are_the_pinned_ones_and_bring_their_licences() -> None:
    from tools.vendor import PACKAGES

    for home in (VENDORED, FOLDER.parents[2] / "tests/browser/vendor"):
        manifest = json.loads((home / "manifest.json").read_text())
        pinned = [p for p in PACKAGES if p.home == home]
        assert [(e["package"], e["licence"], e["archive"]) for e in manifest] == [
            (p.spec, p.licence, p.sha256) for p in pinned
        ]
        listed = {name: digest for entry in manifest for name, digest in entry["files"].items()}
        found = {
            f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in home.iterdir() if f.name != "manifest.json"
        }
        assert found == listed
        assert all(any(name.endswith("LICENSE") for name in entry["files"]) for entry in manifest)


def loaded_by(name: str, seen: set[str]) -> set[str]:
    """The module and all that it imports."""
    if name not in seen:
        seen.add(name)
        folder = (FOLDER / name).parent
        for path in re.findall(r'(?:from|import)\s*"(\.[^"]+)"', (FOLDER / name).read_text(encoding="utf-8")):
            loaded_by((folder / path).resolve().relative_to(FOLDER).as_posix(), seen)
    return seen


@pytest.mark.parametrize("page", ["scores", "numbers", "runs", "server"])
def test_what_a_page_loads_stays_under_100_kilobytes(page: str) -> None:
    sheets = {name for name in assets() if name.endswith(".css")}
    names = sheets | loaded_by(f"pages/{page}.js", loaded_by("app.js", set()))
    assert len(names) > 20
    packed = {name: len(assets()[name].packed) for name in names}
    assert sum(packed.values()) < 100_000, packed


def test_all_pages_together_stay_under_100_kilobytes_in_one_archive() -> None:
    scripts = [asset.content for name, asset in assets().items() if name.endswith((".js", ".mjs", ".css"))]
    assert len(gzip.compress(b"".join(scripts), 9)) < 100_000
    assert all(gzip.decompress(asset.packed) == asset.content for asset in assets().values())
