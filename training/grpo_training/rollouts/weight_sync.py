"""How a rollout server gets the policy's weights: they are saved as a Hugging Face model, and a command of the user's is run.

    rollout:
      sync_every: 10
      sync_command: [curl, -fsS, http://host:30000/update_weights_from_disk, -H, "Content-Type: application/json",
                     -d, '{"model_path": "{path}"}']

`{path}` stands for the directory. The step waits until the command has ended. Nothing is known here of any server's own way to
load weights; between two syncs the server is behind the policy, and the rollout correction weighs that.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

from grpo_training.config import RolloutConfig, RolloutError
from grpo_training.disk import whole_directory
from grpo_training.models.loading import LoadedModel
from grpo_training.models.weights import save_whole_model
from grpo_training.redaction import redacted_command, scrubbed

logger = logging.getLogger(__name__)

_TOLD = 2000  # characters of the command's own words that an error repeats


class WeightSync:
    """Call it with the number of each step, ahead of its rollouts.

    Weights are brought before the first step of this process, whatever the server holds from earlier, and before every
    `sync_every`-th step. A server may go on reading the files of the latest one; those before it are removed.
    """

    def __init__(self, options: RolloutConfig, loaded: LoadedModel, directory: Path) -> None:
        self._options = options
        self._loaded = loaded
        self._directory = directory
        self._brought = False

    def __call__(self, step: int) -> None:
        """Raises RolloutError when the command fails or takes longer than `max_wait` seconds."""
        if self._brought and step % self._options.sync_every:
            return
        path = self._save(step)
        self._run(path)
        self._brought = True
        for old in self._directory.iterdir():
            if old != path:
                shutil.rmtree(old)

    def _save(self, step: int) -> Path:
        final = self._directory.resolve() / f"step-{step:06d}"
        with whole_directory(final) as draft:
            save_whole_model(self._loaded, draft)
        return final

    def _run(self, path: Path) -> None:
        # Replaced and not formatted: a command may hold JSON, whose braces are its own.
        command = [word.replace("{path}", str(path)) for word in self._options.sync_command]
        limit = self._options.max_wait or None
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
        except FileNotFoundError as error:
            raise RolloutError(f"rollout.sync_command: there is no program {command[0]!r}") from error
        except subprocess.TimeoutExpired as error:
            raise RolloutError(
                f"rollout.sync_command did not end within rollout.max_wait={limit:g} s: {command[0]}"
            ) from error
        if ended.returncode:
            told = self._without_secrets((ended.stderr or ended.stdout).strip())[-_TOLD:]
            raise RolloutError(f"rollout.sync_command ended with status {ended.returncode}: {told or 'no word'}")
        logger.info("weights %s brought to the rollout server", path.name)

    def _without_secrets(self, text: str) -> str:
        """What the command said, also without those of its own words that are secrets."""
        words = self._options.sync_command
        for word, shown in zip(words, redacted_command(words), strict=True):
            text = text.replace(word, shown) if shown != word else text
        return scrubbed(text)
