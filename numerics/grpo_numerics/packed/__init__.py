"""The packed stream: many groups in one batch without padding, whatever sequences have in common once.

`forest` says what sequences have in common and `worth` what of it to share, `layout` where every token is, `schedule` which
attention calls that takes, `kernels` is one call, `attention` runs and merges them with gradient, `hook` is the door for
transformers' models.
"""

from .attention import packed_attention
from .hook import NAME, Shape, attention_forward, current_stream, packed_stream, stream_again, stream_inputs
from .layout import PackedLayout, Segment
from .schedule import Schedule

__all__ = [
    "NAME",
    "PackedLayout",
    "Schedule",
    "Segment",
    "Shape",
    "attention_forward",
    "current_stream",
    "packed_attention",
    "packed_stream",
    "stream_again",
    "stream_inputs",
]
