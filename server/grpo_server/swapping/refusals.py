"""What is refused about references while a server serves, and in which words: each says the field, and what to ask instead."""

from __future__ import annotations

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.swapping.house import House
from grpo_server.swapping.progress import Progress
from grpo_server.swapping.references import References
from grpo_server.swapping.wish import Wish

RETRY_AFTER_SECONDS = 2.0
_SOURCE_ERRORS = frozenset({ErrorCode.SOURCE_FORBIDDEN, ErrorCode.MODEL_UNAVAILABLE, ErrorCode.INSUFFICIENT_STORAGE})


def about(wish: Wish, error: ServiceError) -> ServiceError:
    """The same error; where it is one of the source, in the words of whoever asked for that."""
    if error.code not in _SOURCE_ERRORS:
        return error
    param = wish.source_field if error.param == "model" else error.param
    return ServiceError(error.code, f"{error.message}; {wish.otherwise}", param=param)


def busy(progress: Progress) -> ServiceError:
    """409 while one is under way."""
    return ServiceError(
        ErrorCode.SWAP_UNDER_WAY,
        f"{progress.model} is being brought in ({progress.stage}, {progress.seconds:.0f} s so far), or its end is waited "
        "for; come back, or end it with DELETE /admin/reference",
        retry_after=RETRY_AFTER_SECONDS,
    )


def not_held(references: References, house: House, version: int) -> ServiceError:
    """409 for the word on a version that is not held under this name."""
    other = next((one.name for one in references if one.held is not None and one.held.info.version == version), None)
    remedy = (
        'bring it here again with POST /admin/reference and "hold": true'
        if other is None
        else f'it is held for {other}: say "reference": "{other}"'
    )
    return ServiceError(
        ErrorCode.NOT_HELD,
        f"version {version} of {house.name} is not held here, where version {house.engine.info.version} serves; {remedy}",
        param="version" if other is None else "reference",
    )


def check_later(wish: Wish, hosted: int) -> None:
    """Raises ServiceError (422)."""
    if wish.version is not None and wish.version <= hosted:
        raise ServiceError(
            ErrorCode.INVALID_VALUE,
            f"version {wish.version} is not later than the hosted one, {hosted}; versions only grow",
            param="version",
        )


def check_free(references: References, wish: Wish) -> None:
    """Raises ServiceError: 422 where there is a reference of this name, 404 where the base is not here."""
    if wish.base is not None:
        references.named(wish.base, "base")
    if wish.reference in [*references.names, *(house.named.label for house in references)]:
        raise ServiceError(
            ErrorCode.INVALID_VALUE,
            f"there is a reference {wish.reference} already; replace it by POST /admin/reference (grpo-client swap "
            f"--reference {wish.reference}), drop it first, or give another name",
            param="name",
        )


def check_droppable(references: References, house: House) -> None:
    """Raises ServiceError (422) for the default one, and for the base of adapters."""
    if house.default:
        raise ServiceError(
            ErrorCode.INVALID_VALUE,
            f"{house.name} answers who names no model, and cannot be dropped; replace it by POST /admin/reference",
            param="name",
        )
    if on_it := [other.name for other in references if other.named.base == house.named.label]:
        raise ServiceError(
            ErrorCode.INVALID_VALUE,
            f"{house.name} is the base of {', '.join(on_it)}; drop {'that one' if len(on_it) == 1 else 'those'} first",
            param="name",
        )
