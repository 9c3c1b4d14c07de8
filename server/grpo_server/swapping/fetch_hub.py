"""Run as a module, in a process of its own: bring a model from the hub into its cache. Needs no torch.

    python -m grpo_server.swapping.fetch_hub ID REVISION CODE        CODE "code": Python files as well

A hub that does not answer ends with the process, which ends when its standard input does. It writes lines of JSON, as
`fetch_files` does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from grpo_client.models.files import ADAPTER_CONFIG, UnusableModel
from grpo_client.models.reading import Reading
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import disable_progress_bars

from grpo_server.durable import is_full

_TEXTS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_NOT_OURS = ("original/*", "onnx/*", "optimizer*", "training_args.bin")


def tell(**line: Any) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201


def main(name: str, revision: str, code: str) -> None:
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    disable_progress_bars()
    tell(arriving=str(Path(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "blobs")))
    try:
        path = _fetched(name, revision or None, code == "code")
        base = _base(path)
        if base is not None:
            _fetched(base, None, code == "code")
        tell(path=str(path), revision=path.name)
    except UnusableModel as error:
        tell(error=str(error), full=is_full(error))


def _fetched(name: str, revision: str | None, code: bool) -> Path:
    """The snapshot's directory, whose name is the commit. Of a hub that cannot be reached, what is in its cache."""
    with Reading(name):
        patterns = [_weights(name, revision), *_TEXTS, *(["*.py"] if code else [])]
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=list(_NOT_OURS))
        )


def _weights(name: str, revision: str | None) -> str:
    """The pattern of the files that hold them; tells how much there is to bring."""
    if HF_HUB_OFFLINE:
        return "*.safetensors"
    try:
        with Reading(name):
            files = HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
    except UnusableModel:
        return "*.safetensors"
    weights = "*.safetensors" if any(f.rfilename.endswith(".safetensors") for f in files) else "*.bin"
    tell(total=sum(f.size or 0 for f in files if any(Path(f.rfilename).match(p) for p in (weights, *_TEXTS))))
    return weights


def _base(path: Path) -> str | None:
    """The hub id of the base model, of an adapter."""
    if not (path / ADAPTER_CONFIG).is_file():
        return None
    base = json.loads((path / ADAPTER_CONFIG).read_bytes()).get("base_model_name_or_path")
    return base if isinstance(base, str) and base and not Path(base).exists() else None


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
