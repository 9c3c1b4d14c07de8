"""The order in which the rows of distillation targets come; the files themselves are in `run/test_offline.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from grpo_training.rollouts.target_files import Part, walk


def test_each_pass_has_every_row_once() -> None:
    parts = [Part(Path(str(n)), np.arange(size)) for n, size in enumerate((3, 5, 1, 4))]
    everything = sorted((part.path.name, place) for part in parts for place in range(len(part.rows)))
    plain = [row for step in range(13) for row in walk(parts, step, 2, 0, shuffle=False)]
    assert [(part.path.name, place) for part, place in plain] == everything * 2
    drawn = [(part.path.name, place) for step in range(13) for part, place in walk(parts, step, 2, 0, shuffle=True)]
    assert sorted(drawn[:13]) == sorted(drawn[13:]) == everything
    assert len({tuple(drawn[:13]), tuple(drawn[13:]), tuple(everything)}) == 3
    opened = [name for i, (name, _) in enumerate(drawn[:13]) if i == 0 or drawn[i - 1][0] != name]
    assert len(opened) == 4  # one file after the other
