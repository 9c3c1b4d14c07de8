"""The client for ordinary code: blocking calls, and futures for what should overlap with other work.

Only waiting is done here. Requests are built and read, cut and joined, retried and balanced by what is shared with
`AsyncReferenceClient`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from grpo_client.arguments.types import CompletionMask, Completions, Ids, Prompts, WantedIds
from grpo_client.core import ClientCore
from grpo_client.errors import APIError, ConnectionFailed
from grpo_client.forks import PerProcess
from grpo_client.http.exchange import (
    Encoding,
    info_call,
    raise_for_status,
    read_references,
    ready_call,
    references_call,
)
from grpo_client.http.retry import RetryPolicy
from grpo_client.http.tls import TLS
from grpo_client.http.tokenizer import detokenize_call, read_ids, read_text, tokenize_call
from grpo_client.http.transport import BaseTransport
from grpo_client.moving import Move
from grpo_client.protocol import Extra, Normalizer, ReferenceInfo, ScoreRequest, ScoreResult, TopDtype
from grpo_client.settings import (
    DEFAULT_IN_FLIGHT,
    DEFAULT_REQUEST_TOKENS,
    DEFAULT_TIMEOUT,
    ClientOptions,
    ClientSettings,
)
from grpo_client.teachers import Teachers
from grpo_client.text import AnyRequest, Prompt, TextScoreRequest
from grpo_client.tokenizers import Vocabulary
from grpo_client.uploading import OnProgress, Source, model_files, unheard
from grpo_client.workers import Workers, closed


class ReferenceClient:
    """Scores completions under the frozen reference that one or several servers host.

        with ReferenceClient("http://localhost:8000") as client:
            result = client.score([[1, 2, 3]], [[[4, 5], [6]]], temperature=0.7)
            result.ragged()      # [array([-1.2, -0.3]), array([-4.1])], fp32, nats

    base_url: a server, or a list of servers that host the same reference (a prompt goes to the
    same one each time, unless that is busier than the others; failed ones are set aside).
    Options: see `ClientOptions`. transport, sleep: for tests; an httpx transport to talk to instead of the network, and
    what waits between tries. May be used from many threads, after a fork, and from processes that it is pickled to (its
    API key does not travel in a pickle: GRPO_API_KEY must be set there). A future belongs to the process that submitted it.
    Close it, or use it in a `with`. Raises InvalidSetting for an option that cannot be.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_wait: float | None = None,
        encoding: Encoding = "tensors",
        fingerprint: str | None = None,
        max_request_tokens: int = DEFAULT_REQUEST_TOKENS,
        max_in_flight: int = DEFAULT_IN_FLIGHT,
        retry: RetryPolicy | None = None,
        tls: TLS | None = None,
        model: str | None = None,
        transport: BaseTransport | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        options = ClientOptions(
            api_key=api_key,
            timeout=timeout,
            max_wait=max_wait,
            encoding=encoding,
            fingerprint=fingerprint,
            max_request_tokens=max_request_tokens,
            max_in_flight=max_in_flight,
            retry=retry,
            tls=tls,
            model=model,
        )
        self._open(ClientSettings.of(base_url, options), transport, sleep)

    def _open(
        self, settings: ClientSettings, transport: BaseTransport | None, sleep: Callable[[float], None] | None
    ) -> None:
        self._plugged = transport
        self._own_sleep = sleep
        self._closed = False

        self._workers = PerProcess[Workers](
            lambda before: Workers(ClientCore(settings, before.core if before else None), transport, sleep)
        )

    def score(
        self,
        prompts: Prompts,
        completions: Completions,
        *,
        temperature: float | Sequence[float] = 1.0,
        normalizer: Normalizer = "softmax",
        extras: Sequence[Extra] = (),
        top_k: int = 0,
        token_ids: WantedIds | None = None,
        completion_mask: CompletionMask | None = None,
        top_dtype: TopDtype = "float32",
    ) -> ScoreResult:
        """Per-token log-probs of `completions[k][g]` after `prompts[k]`, all token ids.

        One completion a prompt may be given as `completions[k]`. temperature: one, or one per prompt; what the completions
        were sampled with. extras: any of "entropy", "logsumexp", "rank", "tail" (the mass outside the tokens below),
        "hidden" (what the head makes them of, where the server allows it).
        top_k: so many best tokens a position. token_ids: `[k][g][position][...]` ids to score beside the ones that are there,
        -1 for none. completion_mask: `[k][g][position]`, 0 for tokens that are context alone, such as what a tool said: they
        are not scored, and their figures are NaN. top_dtype: float16 halves the log-probs of best and asked tokens.

        Raises ProtocolError for a request that no server could answer, RequestRefused for one that this server cannot,
        FingerprintMismatch, NotAuthorized, DeadlineExceeded when `max_wait` runs out: all are GrpoClientError.
        """
        request = ScoreRequest.of(
            prompts,
            completions,
            temperature=temperature,
            normalizer=normalizer,
            extras=extras,
            top_k=top_k,
            token_ids=token_ids,
            completion_mask=completion_mask,
            top_dtype=top_dtype,
        )
        return self.score_request(request)

    def score_text(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[str]] | Sequence[str],
        *,
        temperature: float | Sequence[float] = 1.0,
        normalizer: Normalizer = "softmax",
        extras: Sequence[Extra] = (),
        top_k: int = 0,
        top_dtype: TopDtype = "float32",
    ) -> ScoreResult:
        """The same for text: prompts are strings or chat messages, completions strings; the server tokenizes.

        The ids that were scored come back in `prompt_ids` and `completion_ids`.
        """
        request = TextScoreRequest.of(
            prompts,
            completions,
            temperature=temperature,
            normalizer=normalizer,
            extras=extras,
            top_k=top_k,
            top_dtype=top_dtype,
        )
        return self.score_request(request)

    def submit(
        self,
        prompts: Prompts,
        completions: Completions,
        *,
        temperature: float | Sequence[float] = 1.0,
        normalizer: Normalizer = "softmax",
        extras: Sequence[Extra] = (),
        top_k: int = 0,
        token_ids: WantedIds | None = None,
        completion_mask: CompletionMask | None = None,
        top_dtype: TopDtype = "float32",
    ) -> Future[ScoreResult]:
        """`score` in the background: returns at once, so that the policy's own forward can run meanwhile.

        A broken request raises here and now; what the server says comes out of `.result()`.
        """
        request = ScoreRequest.of(
            prompts,
            completions,
            temperature=temperature,
            normalizer=normalizer,
            extras=extras,
            top_k=top_k,
            token_ids=token_ids,
            completion_mask=completion_mask,
            top_dtype=top_dtype,
        )
        return self.submit_request(request)

    def score_request(self, request: AnyRequest) -> ScoreResult:
        """`score` for a request that is already a value."""
        return self._here().score(request)

    def submit_request(self, request: AnyRequest) -> Future[ScoreResult]:
        """`submit` for a request that is already a value."""
        return self._here().submit(request)

    def tokenize(
        self, text: Prompt, *, add_special_tokens: bool = True, add_generation_prompt: bool = True
    ) -> NDArray[np.int32]:
        """(n,) ids of a string, or of chat messages under the model's own template, by the reference's own tokenizer.

        add_special_tokens: for a string; a template brings its own. add_generation_prompt: for messages.
        """
        here = self._here()
        call = tokenize_call(
            text,
            add_special_tokens=add_special_tokens,
            add_generation_prompt=add_generation_prompt,
            model=here.core.model,
        )
        return here.retried(here.core.settings.retry, read_ids, call)

    def detokenize(self, ids: Ids) -> str:
        """The text of (n,) ids, special tokens included."""
        here = self._here()
        return here.retried(here.core.settings.retry, read_text, detokenize_call(ids, here.core.model))

    def teachers(
        self,
        urls: Mapping[str, str | Sequence[str]],
        *,
        default: str | None = None,
        tokenizer: Literal["same"] | Vocabulary | None = None,
    ) -> Teachers:
        """Several teachers by name, each asked as this client asks: see `Teachers`. Each is pinned to who first answers."""
        settings = self._workers.get().core.told()
        return Teachers(
            {
                name: _made_from(type(self), settings.at(url), self._plugged, self._own_sleep)
                for name, url in urls.items()
            },
            default=default,
            tokenizer=tokenizer,
        )

    def info(self) -> ReferenceInfo:
        """Who answers: model, fingerprint, version, dtype, mode, limits. With several servers, one of them."""
        here = self._here()
        return here.retried(here.core.settings.retry, here.core.info, info_call(here.core.model))

    def move(
        self, model: str, *, decay: float | None = None, revision: str | None = None, admin_key: str | None = None
    ) -> ReferenceInfo:
        """Have every server host another model, or with decay the average decay * hosted + (1 - decay) * model, and wait for
        it; says who answers from now on, which is pinned where the one before was.

        model: as the servers find it: a directory that they can read, an id of the hub, or what `upload` returned. revision: of
        an id. admin_key: else the client's own key, if that is one. Several servers move together, under one version, or none
        does: see `moving`. Nothing is tried again before that is decided, for an average that was taken once more would be
        another. Raises RequestRefused for a model that cannot be hosted, FingerprintMismatch where the servers would differ,
        NotAuthorized, Unavailable while another move is under way, ConnectionFailed; then all host what they did.
        """
        here = self._here()
        return here.core.moved(here.moved(here.core.steps(Move(model, decay, revision, admin_key, here.core.model))))

    def upload(self, source: Source, *, on_progress: OnProgress | None = None, admin_key: str | None = None) -> str:
        """Bring a model to every server, for `move`: what its files are called there, as `upload:ID`.

            client.move(client.upload("./checkpoint"), decay=0.99)

        source: a directory as `save_pretrained` leaves it, of which config, safetensors and tokenizer are sent, or these
        files. on_progress: called with the bytes that arrived and how many there are. admin_key: as for `move`. Goes on where
        it was after a broken connection and when it is called again, and gives up after `max_wait` without a byte. Raises
        InvalidSetting for what is no such model, RequestRefused for files that the server does not take or that arrived with
        another hash, NotAuthorized, NotFound where the server takes no uploads, ServerFailed when its disk is full, OSError.
        """
        here = self._here()
        return here.upload(model_files(source), admin_key, on_progress or unheard)

    def references(self) -> dict[str, ReferenceInfo]:
        """Who answers under which name, the one that answers who names none first. With several servers, of one of them."""
        here = self._here()
        return here.retried(here.core.settings.retry, read_references, references_call())

    def load(
        self,
        name: str,
        source: str,
        *,
        revision: str | None = None,
        base: str | None = None,
        admin_key: str | None = None,
    ) -> ReferenceInfo:
        """Have every server host one more reference under that name, and wait for it.

        source: as for `move`. base: of an adapter: the name of the reference that it is laid on. Nothing is tried again. Raises
        what `move` raises; servers that have it by then keep it.
        """
        here = self._here()
        return here.moved(here.core.load_steps(name, source, revision, base, admin_key))[0]

    def drop(self, name: str, *, admin_key: str | None = None) -> None:
        """Have every server let go of that reference, once it has answered what it accepted. Raises NotFound for a name that
        is not there, RequestRefused for the one that answers who names none."""
        here = self._here()
        here.moved(here.core.drop_steps(name, admin_key))

    def accept(self) -> ReferenceInfo:
        """Take the reference that answers now for the pinned one, after another process of the same run has had it moved."""
        here = self._here()
        return here.retried(here.core.settings.retry, here.core.accepted, info_call(here.core.model))

    def health(self) -> bool:
        """Whether a server takes requests now; one try, no waiting."""
        try:
            self._here().retried(RetryPolicy(max_wait=0), raise_for_status, ready_call())
        except (ConnectionFailed, APIError):
            return False
        return True

    def wait_ready(self, timeout: float | None = None) -> ReferenceInfo:
        """Wait until a server takes requests; says who it is. timeout: seconds; None: `max_wait`.

        Raises DeadlineExceeded with the last answer, which names the stage that the server is in; 0 seconds try once and
        raise what that try met.
        """
        here = self._here()
        policy = here.core.until_ready(timeout)
        here.retried(policy, raise_for_status, ready_call())
        return here.retried(policy, here.core.info, info_call(here.core.model))

    def close(self) -> None:
        """Give up what is waiting, let what is under way finish, and close the connections. In a forked child, its own."""
        self._closed = True
        if workers := self._workers.made():
            workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._workers.get().core!r})"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        settings = self._workers.get().core.told().to_pickle()
        return _unpickled, (type(self), settings, self._plugged, self._own_sleep)

    def __copy__(self) -> Self:
        return _made_from(type(self), self._workers.get().core.told(), self._plugged, self._own_sleep)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def _here(self) -> Workers:
        if self._closed:
            raise closed()
        return self._workers.get()


Kind = TypeVar("Kind", bound=ReferenceClient)


def _unpickled(kind: type[Kind], settings: ClientSettings, transport: Any, sleep: Any) -> Kind:
    return _made_from(kind, settings.unpickled(), transport, sleep)


def _made_from(kind: type[Kind], settings: ClientSettings, transport: Any, sleep: Any) -> Kind:
    client = kind.__new__(kind)
    client._open(settings, transport, sleep)  # pyright: ignore[reportPrivateUsage]
    return client
