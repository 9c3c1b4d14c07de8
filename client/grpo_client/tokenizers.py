"""Which tokens a tokenizer has under which ids: what decides whether two models may exchange ids.

Neither the size of a vocabulary says it (models pad theirs) nor the tokenizer's name; a chat template and added options do not
matter. The same function makes what `GET /v1/reference` tells, so that a local tokenizer compares with a server's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from grpo_client.errors import InvalidResponse, ProtocolError
from grpo_client.protocol import ReferenceInfo


class Vocabulary(Protocol):
    """What is needed of a tokenizer: its tokens and their ids, added ones included, as every tokenizer of transformers
    tells them."""

    def get_vocab(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, slots=True)
class TokenizerIdentity:
    """A tokenizer's tokens. fingerprint: SHA-256 over them and their ids; tokens: how many ids have one."""

    fingerprint: str
    tokens: int

    @classmethod
    def of(cls, tokenizer: Vocabulary) -> Self:
        """The tokens of a tokenizer that is at hand."""
        by_id = sorted((i, token) for token, i in tokenizer.get_vocab().items())
        return cls(hashlib.sha256(json.dumps(by_id).encode()).hexdigest(), len({i for i, _ in by_id}))


def check_tokenizers(infos: Mapping[str, ReferenceInfo], mine: TokenizerIdentity | None = None) -> None:
    """Raises InvalidResponse, with both sizes, unless all have the same tokens under the same ids: mine, or those of the first.

    infos: what `GET /v1/reference` tells, by name. One that does not tell its tokens is an error, too.
    """
    whose = None if mine is None else f"the local tokenizer ({mine.tokens} tokens)"
    wanted = None if mine is None else mine.fingerprint
    for name, info in infos.items():
        if info.tokenizer_fingerprint is None:
            raise InvalidResponse(
                f"{name} does not say which tokenizer it has; serve its model with one", "tokenizer_fingerprint"
            )
        told = f"{info.tokens} tokens, {info.vocab_size} ids"
        if wanted is None:
            whose, wanted = f"{name} ({told})", info.tokenizer_fingerprint
        if info.tokenizer_fingerprint != wanted:
            raise InvalidResponse(
                f"{name} has another tokenizer ({told}) than {whose}: the same ids are other words to it",
                "tokenizer_fingerprint",
            )


def local_identity(tokenizer: Literal["same"] | Vocabulary | None) -> TokenizerIdentity | None:
    """The tokens of a client's option `tokenizer`. Raises ProtocolError for what is neither a tokenizer nor "same"."""
    if tokenizer is None or tokenizer == "same":
        return None
    if isinstance(tokenizer, str) or not callable(getattr(tokenizer, "get_vocab", None)):
        raise ProtocolError(
            f'tokenizer must be None, "same" or a tokenizer with get_vocab (as those of transformers are), got '
            f"{tokenizer!r:.40}",
            "tokenizer",
            "wrong_value",
        )
    return TokenizerIdentity.of(tokenizer)
