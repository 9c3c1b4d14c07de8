"""Whether ids mean the same to who scores as to the policy: else the wrong tokens are scored, and no figure says so.

The size of a vocabulary does not tell: models of one family pad theirs differently, and two families may have one size. A
server tells a digest of its tokens and their ids. Of one that does not, the texts of ids from all over the vocabulary are
compared, as either side's own tokenizer spells them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grpo_client import ReferenceInfo, TokenizerIdentity
from transformers import PreTrainedTokenizerBase

from grpo_training.config import ConfigError
from grpo_training.rollouts.reference import Reference
from grpo_training.rollouts.teacher import Teachers

logger = logging.getLogger(__name__)

_SPELT = 2048  # ids, evenly spread over the vocabulary


@dataclass(frozen=True, slots=True)
class Scorer:
    """Who scores the policy's ids. spelt: the text of ids by its own tokenizer, None where it does not tell. remedy: against
    another tokenizer."""

    name: str
    info: ReferenceInfo
    spelt: Callable[[Sequence[int]], str | None]
    remedy: str


def scorers(reference: Reference | None, teachers: Teachers | None) -> list[Scorer]:
    """All that are asked in a run."""
    found: list[Scorer] = []
    if reference is not None:
        remedy = "Serve the model that the policy (model.name) started from"
        found.append(Scorer("the reference", reference.info, reference.spelt, remedy))
    if teachers is not None:
        remedy = "Serve a teacher of the policy's family"
        for name, info in teachers.info.items():

            def spelt(ids: Sequence[int], of: Teachers = teachers, name: str = name) -> str | None:
                return of.spelt(name, ids)

            found.append(Scorer(f"teacher {name}", info, spelt, remedy))
    return found


def check_tokenizers(asked: Sequence[Scorer], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ConfigError that names who has another tokenizer, both sizes and an id that they spell differently."""
    mine = TokenizerIdentity.of(tokenizer)
    known = sorted(tokenizer.get_vocab().values())
    for who in asked:
        theirs = who.info.tokenizer_fingerprint
        if theirs == mine.fingerprint:
            continue
        ids = [i for i in known[:: max(1, len(known) // _SPELT)] if i < who.info.vocab_size]
        text = who.spelt(ids)
        alike = text is None or _letters(text) == _letters(_spelt(tokenizer, ids))
        if alike and theirs is not None:
            raise ConfigError(
                f"{who.name} ({who.info.model}) has another tokenizer than the policy: {who.info.tokens} tokens, and the "
                f"policy {mine.tokens}, or the same number under other ids. {who.remedy}"
            )
        if text is None:
            logger.warning(
                "%s does not tell its tokenizer: see to it that it is the policy's, or every id means another token",
                who.name,
            )
        elif not alike:
            wrong = _first_difference(who, tokenizer, ids)
            raise ConfigError(
                f"{who.name} ({who.info.model}) has another tokenizer than the policy: it spells id {wrong} "
                f"{who.spelt([wrong])!r:.60}, and the policy {_spelt(tokenizer, [wrong])!r:.60} (vocabularies of "
                f"{who.info.vocab_size} and {len(known)}). {who.remedy}"
            )


def _first_difference(who: Scorer, tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int:
    """By halves: which of ids is the first that is spelt differently."""
    low, high = 0, len(ids)  # ids[:low] are spelt alike, ids[:high] are not
    while high - low > 1:
        middle = (low + high) // 2
        alike = _letters(who.spelt(ids[:middle]) or "") == _letters(_spelt(tokenizer, ids[:middle]))
        low, high = (middle, high) if alike else (low, middle)
    return ids[low]


def _spelt(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _letters(text: str) -> str:
    """Without white space, which decoders tidy up each in its own way."""
    return "".join(text.split())
