"""What the dialects have in common in saying no: nothing is generated here."""

from __future__ import annotations

from grpo_client.validation.fields import read_temperature

from grpo_server.errors import ErrorCode, ServiceError


def generation(asked: str, param: str, remedy: str) -> ServiceError:
    """asked: what the request wants and this service does not do."""
    return ServiceError(
        ErrorCode.INVALID_VALUE,
        f"{asked}: this service scores given tokens under a frozen reference model and generates no text; {remedy}",
        param=param,
    )


def check_new_tokens(value: int | None, param: str, default: int) -> bool:
    """True if the likeliest next token is wanted. Raises ServiceError for more than one; default: what None means."""
    if value is None:
        raise generation(f"{param} is missing, which means {default}", param, f"send {param}=0 or 1")
    if value not in (0, 1):
        raise generation(f"{param} is {value}", param, f"send {param}=0, or 1 for the likeliest next token")
    return value == 1


def scoring_temperature(value: float | None, param: str = "temperature") -> float:
    """The temperature that log-probs are computed at. 0 is how these dialects ask for greedy sampling, which says nothing
    about the distribution: it means 1. Raises ProtocolError (422) for what is negative or not finite."""
    return 1.0 if value is None or value == 0 else read_temperature(value, param)
