"""simple_GRPO's frames. No HTTP; torch only where a tensor is read.

A frame is a big-endian u32 count, then for each part a big-endian u32 length and its bytes. Parts of an upload: JSON with
`plen`, and perhaps `temperature` and `model`; `inputs` int64 (B, L), the prompt of plen tokens in every row with a completion
behind it; `rewards` float32 (B,); and perhaps `gen_logps` (B, L - plen). Tensors are torch.save files, read without pickle's
powers and only up to the size that their own bytes account for.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
from grpo_client.errors import ProtocolError
from grpo_client.wire_json import read_json

from grpo_server.errors import ErrorCode, ServiceError

_U32 = struct.Struct(">I")
PARTS = (3, 4)
# What the JSON of part 1 may be. It is read to its end and kept for the trainer.
MAX_JSON_BYTES = 2**20
# Of a torch.save file: one tensor takes seven members, and all but its data are short.
MAX_MEMBERS = 64
MAX_MEMBER_BYTES = 2**16
_MEMBER = b"PK\x01\x02"  # each begins so in the list at the end of a zip file


@dataclass(frozen=True, slots=True)
class Upload:
    """A frame that was checked. raw: its parts as they came; model: which reference; inputs: (B, L) int32; temperature: 1
    unless the JSON has one."""

    raw: tuple[bytes, ...]
    plen: int
    temperature: object
    model: str | None
    inputs: npt.NDArray[np.int32]


def read_upload(body: bytes) -> Upload:
    """Raises ServiceError (400) naming the part at fault."""
    parts = _unframe(body)
    if len(parts[0]) > MAX_JSON_BYTES:
        raise ServiceError(
            ErrorCode.REQUEST_TOO_LARGE,
            f"part 1 has {len(parts[0])} bytes of JSON and the limit is {MAX_JSON_BYTES}; send plen alone",
            param="part 1",
        )
    try:
        base = read_json(parts[0])
    except ProtocolError as error:
        if error.code != "malformed_json":
            raise
        raise _broken("part 1", f"is not JSON ({error.message})") from error
    plen = base.get("plen") if isinstance(base, dict) else None
    if not isinstance(plen, int) or isinstance(plen, bool):
        raise _broken("plen", "must be a whole number in the JSON object of part 1")
    model = base.get("model")
    if model is not None and not isinstance(model, str):
        raise _broken("model", "must be a name in the JSON object of part 1")
    inputs = _tensor(parts[1], "inputs", "int64", 2)
    rows, length = inputs.shape
    if not (rows >= 1 and 1 <= plen <= length):
        raise _broken("plen", f"is {plen}, and inputs has shape {inputs.shape}; the prompt has 1 to {length} tokens")
    if inputs.min() < 0 or inputs.max() > np.iinfo(np.int32).max:
        raise _broken("inputs", "holds an id below 0 or beyond int32")
    if (rewards := _tensor(parts[2], "rewards", "float32", 1)).shape != (rows,):
        raise _broken("rewards", f"has shape {rewards.shape}; give one for each of the {rows} rows")
    if len(parts) == 4 and (gen := _tensor(parts[3], "gen_logps", None, 2)).shape != (rows, length - plen):
        raise _broken("gen_logps", f"has shape {gen.shape}; inputs and plen make it {(rows, length - plen)}")
    return Upload(parts, plen, base.get("temperature", 1.0), model, inputs.astype(np.int32))


def scored_frame(upload: Upload, refs: npt.NDArray[np.float32]) -> bytes:
    """What a trainer gets: JSON, inputs, rewards as they came, refs (B, L - plen) float32, and gen_logps if there were any."""
    import torch

    buffer = io.BytesIO()
    torch.save(torch.from_numpy(np.ascontiguousarray(refs)), buffer)
    return frame([*upload.raw[:3], buffer.getvalue(), *upload.raw[3:]])


def frame(parts: Sequence[bytes]) -> bytes:
    return b"".join([_U32.pack(len(parts)), *(piece for part in parts for piece in (_U32.pack(len(part)), part))])


def _unframe(body: bytes) -> tuple[bytes, ...]:
    parts: list[bytes] = []
    end = _U32.size
    if len(body) < end or _U32.unpack_from(body)[0] not in PARTS:
        raise _broken("the frame", "must begin with the number of its parts, 3 or 4, as a big-endian u32")
    for i in range(_U32.unpack_from(body)[0]):
        start = end + _U32.size
        if start > len(body) or start + _U32.unpack_from(body, end)[0] > len(body):
            raise _broken("the frame", f"ends inside part {i + 1}; is it cut off?")
        end = start + _U32.unpack_from(body, end)[0]
        parts.append(body[start:end])
    if end != len(body):
        raise _broken("the frame", f"has {len(body) - end} bytes behind its last part")
    return tuple(parts)


def _tensor(blob: bytes, name: str, dtype: str | None, dimensions: int) -> npt.NDArray[Any]:
    """A dense CPU tensor from a torch.save file."""
    import torch

    _check_archive(blob, name)
    try:
        value = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise _broken(name, f"is not a tensor saved by torch.save: {str(error).partition('.')[0]:.200}") from error
    if type(value) is not torch.Tensor or value.layout is not torch.strided or value.is_quantized:
        raise _broken(name, "must be one dense tensor")
    # A view may claim any shape over few bytes: what it would unfold to must not be more than what was sent.
    if value.numel() * value.element_size() > len(blob):
        raise _broken(name, f"has shape {tuple(value.shape)}, more than its {len(blob)} bytes hold; save it contiguous")
    if value.ndim != dimensions or (dtype is not None and value.dtype is not getattr(torch, dtype)):
        raise _broken(
            name, f"must be {dtype or 'a tensor'} of {dimensions} dimensions, got {value.dtype}, {value.ndim}"
        )
    return (value if dtype else value.float()).contiguous().numpy()


def _check_archive(blob: bytes, name: str) -> None:
    """torch.save writes a zip file whose members are stored as they are. One that unpacks to more than it is long is
    refused before anything is unpacked."""
    if blob.count(_MEMBER) > MAX_MEMBERS:
        raise _broken(
            name, f"is an archive of more than {MAX_MEMBERS} files; send what torch.save writes for one tensor"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _broken(name, f"is not a file written by torch.save ({error})") from error
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > len(blob):
        raise _broken(name, "is a compressed archive; send what torch.save writes")
    # data lies under a number; the pickle that says what it is does not
    if any(m.file_size > MAX_MEMBER_BYTES and not m.filename.rpartition("/")[2].isdigit() for m in members):
        raise _broken(name, f"has more than {MAX_MEMBER_BYTES} bytes beside its data; send what torch.save writes")


def _broken(param: str, what: str) -> ServiceError:
    return ServiceError(ErrorCode.MALFORMED, f"{param} {what}", param=param)
