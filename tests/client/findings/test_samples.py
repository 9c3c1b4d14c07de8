"""Records as columns: what is read, what is let pass, and what an error names."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpo_client.findings import SamplesError, read_samples, samples_of

RECORD: dict[str, Any] = {
    "step": 3,
    "temperature": 0.7,
    "prompt_ids": [1, 2],
    "completion_ids": [[5, 6, 7], [8], []],
    "policy_logprobs": [[-1.0, None, -0.5], [-2.0], []],
    "ref_logprobs": [[-1.1, -0.2, -0.5], [-2.5], []],
    "ended": [True, False, None],
    "rewards": [1, 0.5, None],
    "completions": ["a", "b", ""],
}


def test_columns_of_a_record() -> None:
    samples = samples_of([(1, RECORD), (2, {"prompt": [4], "completions": [[9, 9]]})])
    assert samples.ids.tolist() == [5, 6, 7, 8, 9, 9]
    assert samples.starts.tolist() == [0, 3, 4, 4, 6]
    assert samples.group.tolist() == [0, 0, 0, 1]
    assert samples.step.tolist() == [3, -1]
    assert samples.temperature.tolist() == [0.7, 1.0]
    np.testing.assert_array_equal(samples.columns["policy_logprobs"], [-1, np.nan, -0.5, -2, np.nan, np.nan])
    np.testing.assert_array_equal(samples.known["ended"], [1, 0, np.nan, np.nan])
    assert samples.texts == ["a", "b", "", None]
    assert samples.prompts[1] is not None
    assert samples.prompts[1].tolist() == [4]
    assert "entropy" not in samples.columns
    assert samples.sequence.tolist() == [0, 0, 0, 1, 3, 3]
    assert samples.position.tolist() == [0, 1, 2, 0, 0, 1]
    assert samples.places(np.array([0, 2, 3, 5])) == [(0, 0), (0, 2), (1, 0), (3, 1)]


def test_log_probs_without_ids_are_columns_too() -> None:
    samples = samples_of([(1, {"policy_logprobs": [[-1.0, -2.0]], "ref_logprobs": [[-1.0, -2.5]]})])
    assert samples.ids.tolist() == [-1, -1]
    assert samples.prompts == [None]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"policy_logprobs": [[-1.0], [-2.0], []]}, r"line 7: policy_logprobs\[0\] has 1 entries .* 3 tokens"),
        (
            {"policy_logprobs": [[-1.0, -1, -1]]},
            "line 7: policy_logprobs must be a list with one entry for each of the 3",
        ),
        ({"ref_logprobs": [["x", -0.2, -0.5], [-2.5], []]}, r"line 7: ref_logprobs\[0\] must hold numbers or null"),
        ({"completion_ids": [[5, -6, 7], [8], []]}, r"line 7: completion_ids\[0\] must be a list of token ids"),
        ({"completion_ids": [[5, 6.5, 7], [8], []]}, r"line 7: completion_ids\[0\] must be a list of token ids"),
        ({"completion_ids": "abc"}, "line 7: completion_ids must be there"),
        ({"prompt_ids": [[1]]}, "line 7: prompt_ids must be a list of token ids"),
        ({"step": "three"}, "line 7: step must be a number, got 'three'"),
        ({"temperature": True}, "line 7: temperature must be a number"),
        ({"rewards": [1]}, "line 7: rewards must be a list with one entry for each of the 3 completions"),
    ],
)
def test_an_error_names_line_and_field(change: dict[str, Any], says: str) -> None:
    with pytest.raises(SamplesError, match=says):
        samples_of([(7, RECORD | change)])


def test_a_record_without_completions_is_told() -> None:
    with pytest.raises(SamplesError, match="line 1: completion_ids must be there"):
        samples_of([(1, {"step": 0})])


def test_a_last_line_that_was_cut_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    line = json.dumps(RECORD)
    path.write_text(f"{line}\n\n{line}\n{line[:40]}")
    samples = read_samples(path)
    assert (len(samples.records), samples.cut_lines) == (2, 1)
    path.write_text(f"{line}\n{line[:40]}\n{line}\n")
    with pytest.raises(SamplesError, match="line 2: not valid JSON"):
        read_samples(path)


def test_gzip_is_read(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(RECORD).encode()))
    assert len(read_samples(path)) == 3


def test_a_line_that_is_no_object_is_told(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("[1]\n")
    with pytest.raises(SamplesError, match="line 1: must be a JSON object"):
        read_samples(path)


def test_an_empty_file_has_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("")
    assert len(read_samples(path)) == 0
