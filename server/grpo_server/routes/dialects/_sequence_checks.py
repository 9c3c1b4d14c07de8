"""What is wrong with whole sequences, in the words of their dialect: what `check_request` holds of a native request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_client.masking import PAD
from grpo_client.protocol import IntArray, ReferenceInfo

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.routes.dialects._sequence_values import ScoredSequence


@dataclass(frozen=True, slots=True)
class Names:
    """What the dialect calls things, for its errors: `sequences` takes an index, `top` is the field for how many best."""

    sequences: str = "prompt[{}]"
    top: str = "logprobs"
    token_ids: str = "token_ids"
    instead: str = ""  # of too many token_ids


def check_sequences(
    service: Service, info: ReferenceInfo, sequences: Sequence[ScoredSequence], names: Names, top_k: int
) -> None:
    """Raises ServiceError (413, 422) that names the sequence."""
    every = names.sequences.partition("[")[0]
    if not sequences:
        raise _impossible(f"{every} is empty; give at least one sequence", every)
    if len(sequences) > service.config.max_completions:
        raise ServiceError(
            ErrorCode.REQUEST_TOO_LARGE,
            f"{every} has {len(sequences)} sequences; the limit is {service.config.max_completions}; send fewer at once",
            param=every,
        )
    most = min(service.config.max_top_k, info.vocab_size)
    if top_k > most:
        raise _too_wide(top_k, most, names.top)
    for i, sequence in enumerate(sequences):
        name = names.sequences.format(i)
        if len(sequence.ids) == 0:
            raise _impossible(f"{name} is empty; give at least one token", name)
        check_size(service, info, len(sequence.ids), sequence.width, names, i)
        _check_ids(sequence.ids, info.vocab_size, name)
        for asked in (sequence.token_ids, sequence.next_ids):
            if asked is not None:
                _check_ids(asked, info.vocab_size, names.token_ids, PAD)


def check_size(service: Service, info: ReferenceInfo, length: int, width: int, names: Names, index: int) -> None:
    """Raises ServiceError for a sequence that is too long, or for more asked ids a position than the server gives: before any
    array of (length, width) is made."""
    name = names.sequences.format(index)
    if length > info.max_length:
        raise ServiceError(
            ErrorCode.CONTEXT_LENGTH,
            f"{name} has {length} tokens; the model's context holds {info.max_length}; shorten it",
            param=name,
        )
    most = min(service.config.max_top_k, info.vocab_size)
    if width > most:
        raise _too_wide(width, most, names.token_ids, names.instead)


def _too_wide(asked: int, most: int, name: str, instead: str = "") -> ServiceError:
    return _impossible(f"{name} asks for {asked} ids a position; this server gives at most {most}{instead}", name)


def _check_ids(ids: IntArray, vocab_size: int, name: str, lowest: int = 0) -> None:
    if (wrong := ids[(ids < lowest) | (ids >= vocab_size)]).size:
        raise _impossible(f"{name} holds the id {wrong[0]}; the vocabulary has {vocab_size} ids, 0 and up", name)


def _impossible(message: str, param: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_VALUE, message, param=param)
