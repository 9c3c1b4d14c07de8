"""The code in docs/client.md runs."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import grpo_client
import httpx
import pytest

PAGE = (Path(__file__).parents[2] / "docs/client.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet(snippet: str, reference, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, handler in (("ReferenceClient", reference), ("AsyncReferenceClient", reference.async_handler())):
        wired = partial(getattr(grpo_client, name), transport=httpx.MockTransport(handler))
        monkeypatch.setattr(grpo_client, name, wired)
    exec(compile(snippet, "docs/client.md", "exec"), {"__name__": "snippet"})
    assert reference.seen, "it talked to the server"


def test_the_page_names_every_option() -> None:
    from grpo_client.settings import ClientOptions

    assert all(f"`{name}`" in PAGE for name in ClientOptions.__annotations__)
