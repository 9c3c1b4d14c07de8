"""Whether a teacher's ids are the policy's: from another tokenizer the wrong tokens are learnt, and no figure says so.

The size of a vocabulary does not tell: models of one family pad theirs differently, and two families may have one size. So
the texts of ids from all over the vocabulary are compared, as either side's own tokenizer spells them.
"""

from __future__ import annotations

import logging

from transformers import PreTrainedTokenizerBase

from grpo_training.config import ConfigError
from grpo_training.rollouts.teacher import Teachers

logger = logging.getLogger(__name__)

_SPELT = 2048  # ids, evenly spread over the vocabulary


def check_tokenizers(teachers: Teachers, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ConfigError that names a teacher with another tokenizer, both sizes and an id that they spell differently."""
    known = sorted(tokenizer.get_vocab().values())
    for name, info in teachers.info.items():
        ids = [i for i in known[:: max(1, len(known) // _SPELT)] if i < info.vocab_size]
        theirs = teachers.spelt(name, ids)
        if theirs is None:
            logger.warning(
                "teacher %s does not tell its tokenizer: see to it that it is the policy's, or every id means another token",
                name,
            )
        elif _letters(theirs) != _letters(_spelt(tokenizer, ids)):
            wrong = _first_difference(teachers, name, tokenizer, ids)
            raise ConfigError(
                f"teacher {name} ({info.model}) has another tokenizer than the policy: it spells id {wrong} "
                f"{teachers.spelt(name, [wrong])!r:.60}, and the policy {_spelt(tokenizer, [wrong])!r:.60} (vocabularies of "
                f"{info.vocab_size} and {len(known)}). Serve a teacher of the policy's family"
            )


def _first_difference(teachers: Teachers, name: str, tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int:
    """By halves: which of ids is the first that is spelt differently."""
    low, high = 0, len(ids)  # ids[:low] are spelt alike, ids[:high] are not
    while high - low > 1:
        middle = (low + high) // 2
        alike = _letters(teachers.spelt(name, ids[:middle]) or "") == _letters(_spelt(tokenizer, ids[:middle]))
        low, high = (middle, high) if alike else (low, middle)
    return ids[low]


def _spelt(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _letters(text: str) -> str:
    """Without white space, which decoders tidy up each in its own way."""
    return "".join(text.split())
