"""What the package shows, what it drags in, and that its command-line entry exists."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import grpo_client
import pytest

PACKAGE = Path(grpo_client.__file__).parent

EXPORTS = [
    "__version__",
    "APIError",
    "AsyncReferenceClient",
    "AsyncTeachers",
    "ChatMessage",
    "check_request",
    "check_tokenizers",
    "ClientClosed",
    "ClientOptions",
    "CompletionScores",
    "Completions",
    "Prompts",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Encoding",
    "Extra",
    "EXTRAS",
    "FingerprintMismatch",
    "Group",
    "GrpoClientError",
    "Ids",
    "InvalidResponse",
    "InvalidSetting",
    "Limits",
    "Normalizer",
    "NORMALIZERS",
    "TLS",
    "NotAuthorized",
    "NotFound",
    "Prompt",
    "ProtocolError",
    "ReferenceClient",
    "ReferenceInfo",
    "RequestRefused",
    "Retry",
    "RetryPolicy",
    "ScoreOptions",
    "ScoreRequest",
    "ScoreResult",
    "ServerFailed",
    "Status",
    "TeacherResult",
    "Teachers",
    "TextGroup",
    "TextScoreOptions",
    "TextScoreRequest",
    "TokenizerIdentity",
    "TopDtype",
    "Unavailable",
    "Usage",
    "WantedIds",
    "wire_json",
    "wire_tensors",
]


def test_exports() -> None:
    assert sorted(grpo_client.__all__) == sorted(EXPORTS)
    assert all(hasattr(grpo_client, name) for name in EXPORTS)


def test_import_drags_in_no_framework() -> None:
    code = (
        "import sys, grpo_client, grpo_client.cli\n"
        "heavy = {'torch', 'fastapi', 'starlette', 'transformers', 'tokenizers', 'uvicorn', 'grpo_server'}\n"
        "sys.exit(' '.join(sorted(heavy & {m.partition('.')[0] for m in sys.modules})) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_module_knows_the_http_library() -> None:
    importers = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            importers += [path.name for name in names if name.partition(".")[0] == "httpx"]
    assert importers == ["transport.py"]


def test_errors_are_also_what_python_calls_them() -> None:
    for error, kind in [
        (grpo_client.ProtocolError, ValueError),
        (grpo_client.RequestRefused, ValueError),
        (grpo_client.APIError, RuntimeError),
        (grpo_client.FingerprintMismatch, RuntimeError),
        (grpo_client.ConnectionFailed, ConnectionError),
        (grpo_client.DeadlineExceeded, TimeoutError),
        (grpo_client.InvalidSetting, ValueError),
    ]:
        assert issubclass(error, kind)
        assert issubclass(error, grpo_client.GrpoClientError)


@pytest.mark.parametrize("kind", [grpo_client.ReferenceClient, grpo_client.AsyncReferenceClient])
@pytest.mark.parametrize("name", ["__init__", "score", "score_text", "submit"])
def test_every_argument_has_a_name_that_an_editor_can_show(kind: type, name: str) -> None:
    if not hasattr(kind, name):
        assert (kind.__name__, name) == ("AsyncReferenceClient", "submit")
        return
    parameters = inspect.signature(getattr(kind, name)).parameters
    assert all(p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())
    options = grpo_client.ClientOptions if name == "__init__" else grpo_client.ScoreOptions
    wanted = set(options.__annotations__) - ({"token_ids", "completion_mask"} if name == "score_text" else set())
    assert wanted <= parameters.keys()
    with pytest.raises(TypeError, match="nothing_of_the_kind"):
        getattr(kind, name)(None, None, nothing_of_the_kind=1)


def test_the_package_is_a_command_too() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "grpo_client", "--version"], capture_output=True, text=True, check=False
    )
    assert ran.stdout == f"grpo-client {grpo_client.__version__}\n", ran.stderr
