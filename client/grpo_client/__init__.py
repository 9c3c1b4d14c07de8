"""Reference-policy log-probs over HTTP: the contract, and the clients that speak it.

    from grpo_client import ReferenceClient

    with ReferenceClient("http://localhost:8000") as client:
        result = client.score(prompts=[[1, 2, 3]], completions=[[[4, 5], [6]]], temperature=0.7)

Needs neither torch nor a server's libraries; results are NumPy arrays.
"""

from typing import TYPE_CHECKING

from grpo_client import wire_json, wire_tensors
from grpo_client.arguments.types import Completions, Ids, Prompts, WantedIds
from grpo_client.async_client import AsyncReferenceClient
from grpo_client.client import ReferenceClient
from grpo_client.core import ScoreOptions, TextScoreOptions
from grpo_client.errors import (
    APIError,
    ClientClosed,
    ConnectionFailed,
    DeadlineExceeded,
    FingerprintMismatch,
    GrpoClientError,
    InvalidResponse,
    InvalidSetting,
    NotAuthorized,
    NotFound,
    ProtocolError,
    RequestRefused,
    ServerFailed,
    Unavailable,
)
from grpo_client.http.exchange import Encoding
from grpo_client.http.retry import RetryPolicy
from grpo_client.http.retry_log import Retry
from grpo_client.http.tls import TLS
from grpo_client.protocol import (
    EXTRAS,
    NORMALIZERS,
    CompletionScores,
    Extra,
    Group,
    Normalizer,
    ReferenceInfo,
    ScoreRequest,
    ScoreResult,
    Status,
    TopDtype,
    Usage,
)
from grpo_client.routing import TeacherResult
from grpo_client.settings import ClientOptions
from grpo_client.teachers import AsyncTeachers, Teachers
from grpo_client.text import ChatMessage, Prompt, TextGroup, TextScoreRequest
from grpo_client.tokenizers import TokenizerIdentity, check_tokenizers
from grpo_client.validation.limits import Limits
from grpo_client.validation.request import check_request

__all__ = [
    "EXTRAS",
    "NORMALIZERS",
    "TLS",
    "APIError",
    "AsyncReferenceClient",
    "AsyncTeachers",
    "ChatMessage",
    "ClientClosed",
    "ClientOptions",
    "CompletionScores",
    "Completions",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Encoding",
    "Extra",
    "FingerprintMismatch",
    "Group",
    "GrpoClientError",
    "Ids",
    "InvalidResponse",
    "InvalidSetting",
    "Limits",
    "Normalizer",
    "NotAuthorized",
    "NotFound",
    "Prompt",
    "Prompts",
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
    "__version__",
    "check_request",
    "check_tokenizers",
    "wire_json",
    "wire_tensors",
]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """`__version__`, looked up when it is asked for."""
        if name == "__version__":
            from grpo_client.version import package_version

            return package_version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
