"""Unpacking what a client compressed (Content-Encoding), a bounded chunk at a time. Plain values: no HTTP, no event loop.

gzip and deflate come with Python; zstd with Python 3.14, or with `backports.zstd` before. A decoder gives at most as many
bytes as it is asked for, so that a few bytes which unpack to gigabytes cost no more memory than the caller allows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Protocol

# RFC 9659: a window over 8 MiB is not for HTTP. The decoder would hold it in memory.
ZSTD_WINDOW_LOG_MAX = 23
# Decoders copy what they were given and did not take: little at first, since a member may be short, then more.
FIRST_BYTES, MOST_BYTES = 2**10, 2**16
# A member costs time however short it is: so many in any body, and then one for so many bytes.
MEMBERS, BYTES_A_MEMBER = 16, 2**10


class CorruptBody(ValueError):
    """The body is not what its Content-Encoding says."""


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes | memoryview, max_length: int, /) -> bytes: ...


def chunks(body: bytes, coding: str, size: int) -> Iterator[bytes]:
    """The unpacked body in chunks of at most `size` bytes; none is unpacked before it is asked for.

    coding: a key of `codings()`. Raises CorruptBody where the body breaks off, or is something else.
    """
    new = codings()[coding]
    view, at, members = memoryview(body), 0, 0
    while at < len(body) or not members:
        members += 1
        if members > MEMBERS + len(body) // BYTES_A_MEMBER:
            raise CorruptBody(f"the body is {coding} in more than {members - 1} members; pack it in one")
        if members > 1 and coding == "deflate":
            raise CorruptBody(f"{len(body) - at} bytes come after the end of the deflate stream")
        at = yield from _member(new(body), coding, view, at, size)


def _member(decoder: _Decoder, coding: str, view: memoryview, at: int, size: int) -> Generator[bytes, None, int]:
    """One member of a body; gzip and zstd may have several, one after the other. Returns where the next begins."""
    step = FIRST_BYTES
    waiting: bytes | memoryview = b""
    while not decoder.eof:
        if not waiting:  # a zstd decoder keeps what it has not taken, and may be given nothing
            waiting = view[at : at + step]
            at += len(waiting)
            step = min(2 * step, MOST_BYTES)
            fed_all = not waiting
        try:
            chunk = decoder.decompress(waiting, size)
        except (zlib.error, ValueError, _zstd_error()) as error:
            raise CorruptBody(f"the body is no valid {coding} ({error})") from error
        waiting = getattr(decoder, "unconsumed_tail", b"")
        if chunk:
            yield chunk
        elif fed_all and not decoder.eof:
            raise CorruptBody(f"the body is no whole {coding}; is it cut off?")
    return at - len(decoder.unused_data)


def codings() -> dict[str, Callable[[bytes], _Decoder]]:
    """What this server unpacks: the name in Content-Encoding, and how to begin."""
    known: dict[str, Callable[[bytes], _Decoder]] = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate}
    if (zstd := _zstd_module()) is not None:
        options = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
        known["zstd"] = lambda body: zstd.ZstdDecompressor(options=options)
    return known


def accepted() -> str:
    """The codings as Accept-Encoding lists them."""
    return ", ".join(name for name in codings() if not name.startswith("x-"))


def _gzip(body: bytes) -> _Decoder:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _deflate(body: bytes) -> _Decoder:
    """zlib's container as RFC 9110 has it, or the bare stream that some clients send in its place."""
    header = int.from_bytes(body[:2], "big")
    is_zlib = len(body) > 1 and body[0] & 0x0F == 8 and header % 31 == 0
    return zlib.decompressobj(wbits=zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)


@cache
def _zstd_module() -> ModuleType | None:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    return None


def _zstd_error() -> type[Exception]:
    zstd = _zstd_module()
    return CorruptBody if zstd is None else zstd.ZstdError
