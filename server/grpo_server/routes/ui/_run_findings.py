"""What the rules say of a run's files, and where the tokens are that they point at."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from grpo_client.findings import Finding, SamplesError, check_metrics, check_samples, in_order, samples_of
from pydantic_core import from_json

from grpo_server.routes.ui._run_files import NoSuchFile, NotReadableSo, RunFiles

# From either end of a file: of samples some 300,000 tokens in all.
_EACH_END = 4 * 2**20


@dataclass(frozen=True, slots=True)
class _Records:
    """records: of both ends. place: of each, its step and which of the step's lines it is. left_out: bytes between the ends."""

    records: list[dict[str, Any]]
    place: list[tuple[int, int]]
    left_out: int


def findings_of(files: RunFiles, run: str) -> dict[str, Any]:
    """{"findings", "groups", "completions", "tokens", "left_out"}: left_out is in bytes of samples.jsonl. A token that a
    finding points at is [step, group of the step, completion of the group, position].

    Raises NoSuchFile for what is no run, NotReadableSo for lines that are no records.
    """
    files.check(run)
    metrics = _records(files, run, "metrics.jsonl")
    groups = _records(files, run, "samples.jsonl")
    # a group that is kept as text alone is for people to read
    kept = [k for k, record in enumerate(groups.records) if record.get("completion_ids") is not None]
    try:
        samples = samples_of((k + 1, groups.records[k]) for k in kept)
    except SamplesError as error:
        raise NotReadableSo("samples.jsonl", f"cannot be checked: {error}") from error
    found = in_order([*check_samples(samples), *check_metrics(metrics.records)])
    first = np.searchsorted(samples.group, np.arange(len(kept)))
    places = [(*groups.place[kept[g]], s - int(first[g])) for s, g in enumerate(samples.group.tolist())]
    return {
        "findings": [_as_json(finding, places) for finding in found],
        "groups": len(kept),
        "completions": len(samples),
        "tokens": len(samples.ids),
        "left_out": groups.left_out,
    }


def _records(files: RunFiles, run: str, name: str) -> _Records:
    """What the ends of a file hold; nothing where there is none."""
    try:
        head, tail, left_out = files.ends(run, name, _EACH_END)
    except NoSuchFile:
        return _Records([], [], 0)
    begin, end = _parsed(head, name), _parsed(tail, name)
    if end:  # it may begin in the middle of a step, whose lines could not be counted
        end = [record for record in end if record.get("step") != end[0].get("step")]
    records = begin + end
    seen, place = Counter[Any](), list[tuple[int, int]]()
    for record in records:
        step = record.get("step")
        place.append((step if isinstance(step, int) else -1, seen[step]))
        seen[step] += 1
    return _Records(records, place, left_out)


def _parsed(lines: bytes, name: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for line in lines.split(b"\n"):
        if not line.strip():
            continue
        try:
            record = from_json(line)
        except ValueError as error:
            raise NotReadableSo(name, f"has a line that is not valid JSON ({error})") from error
        if not isinstance(record, dict) or isinstance(record.get("step"), dict | list):
            raise NotReadableSo(name, "has a line that is no record of a step")
        records.append(record)
    return records


def _as_json(finding: Finding, places: list[tuple[int, int, int]]) -> dict[str, Any]:
    return finding.as_json() | {"tokens": [[*places[s], position] for s, position in finding.tokens]}
