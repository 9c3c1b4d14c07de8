"""The built site as a browser meets it: every link leads to a file and an anchor that are there, nothing comes from elsewhere.

    python -m tools.check_site site       status 1, with every fault by page, if there is one

The generator checks links in Markdown; this reads the HTML, with what tables, docstrings and the theme put there.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself, where a link is followed by a reader.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """Ids, links, and what is fetched."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        canonical = tag == "link" and given.get("rel") in ("canonical", "next", "prev")
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif FETCHED.get(tag) in given and not canonical:
            self.fetched.append(given[FETCHED[tag]])


def faults(site: Path) -> list[str]:
    """`page: what is wrong`, for every page below site."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    if not pages:
        return [f"{site}: there is no page"]
    found = []
    for path, page in sorted(pages.items()):
        if path.name == "404.html":  # served at any depth, with links from the root
            continue
        name = path.relative_to(site.resolve())
        found += [f"{name}: fetches {url}" for url in page.fetched if urlsplit(url).netloc]
        for url in page.links + page.fetched:
            fault = dead(url, path, pages)
            if fault:
                found.append(f"{name}: {url}: {fault}")
    return found


def dead(url: str, page: Path, pages: dict[Path, Page]) -> str | None:
    """Why a link of this page leads nowhere; None if it leads somewhere, or to another host."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return None
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return "no such file"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].ids:
        return "no such anchor"
    return None


def main(argv: list[str]) -> int:
    found = faults(Path(argv[0]))
    for fault in found:
        sys.stderr.write(f"{fault}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
