"""What a run leaves behind, opened before the first step and closed after the last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from grpo_training.config import TrainConfig
from grpo_training.report.metrics import JsonLines, TensorBoard, Tracker
from grpo_training.report.trackers import RemoteTracker
from grpo_training.run.findings import RunFindings
from grpo_training.run.step import StepReport


class Outputs:
    """`metrics.jsonl`, `samples.jsonl`, TensorBoard's events, trackers, and a warning where the figures show that something is
    wrong; on processes that do not write, nothing."""

    def __init__(self, trackers: list[Tracker], samples: JsonLines | None) -> None:
        self._trackers = trackers
        self._samples = samples
        self._findings = RunFindings()

    def write(self, step: int, report: StepReport) -> None:
        """Step `step` (from 0) is done."""
        for tracker in self._trackers:
            tracker.write(step, report.figures)
        if self._samples is not None:
            for sample in report.samples:
                self._samples.write(step, sample.record())
            self._findings.write(step, report.figures, report.samples)


@contextmanager
def open_outputs(config: TrainConfig, first_step: int, *, writes: bool) -> Iterator[Outputs]:
    """first_step: records from it on are dropped from existing files. writes: False for a process that only computes."""
    if not writes:
        yield Outputs([], None)
        return
    output, options = config.trainer.output, config.trainer
    settings = config.model_dump(mode="json")
    with ExitStack() as opened:
        trackers: list[Tracker] = [
            opened.enter_context(closing(JsonLines(output / "metrics.jsonl", first_step=first_step)))
        ]
        if options.tensorboard:
            board = TensorBoard(output / "tensorboard", first_step=first_step)
            trackers.append(opened.enter_context(closing(board)))
        for name in options.trackers:
            remote = RemoteTracker(name, project=options.tracker_project, directory=output, settings=settings)
            trackers.append(opened.enter_context(closing(remote)))
        samples = opened.enter_context(closing(JsonLines(output / "samples.jsonl", first_step=first_step)))
        (output / "config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
        yield Outputs(trackers, samples)
