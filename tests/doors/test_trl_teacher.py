"""TRL distils from the service as from a teacher of its own: the same losses at every id, and the student's ids where asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_client import ReferenceClient, ScoreResult, Status
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

trl = pytest.importorskip("trl", reason="the TRL door needs the extra `trl`")
from datasets import Dataset  # noqa: E402
from grpo_training.trl import ReferenceUnusable, RemoteTeacherTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

QUIET = {"report_to": [], "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
NAMES = ("loss", "grad_norm", "entropy")


@pytest.fixture(scope="module")
def student_path(tiny_path: Path, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the teacher's shape, with other weights."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("student")
    LlamaForCausalLM(AutoModelForCausalLM.from_pretrained(tiny_path).config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def trainer(cls: type, model: Path, tokenizer: Any, out: Path, rest: dict[str, Any], **fields: Any) -> Any:
    told = {
        "max_steps": 3,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 8,
        "temperature": 0.7,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 7,
        **fields,
    }
    data = Dataset.from_dict({"prompt": ["1+2=", "a", "30+4=", "b c", "7", "55+1=", "9+9=", "f"]})
    args = trl.DistillationConfig(str(out), **QUIET, **told)
    return cls(model=str(model), args=args, train_dataset=data, processing_class=tokenizer, **rest)


def history(one: Any, *names: str) -> dict[str, list[float]]:
    one.train()
    return {name: [entry[name] for entry in one.state.log_history if name in entry] for name in names}


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_every_id_gives_the_loss_of_a_teacher_in_this_process(
    beta: float, student_path: Path, tiny_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path
) -> None:
    local = history(
        trainer(
            trl.DistillationTrainer, student_path, tokenizer, tmp_path, {"teacher_model": str(tiny_path)}, beta=beta
        ),
        *NAMES,
    )
    rest = {"teacher": reference_url, "top_k": len(tokenizer)}
    remote = history(trainer(RemoteTeacherTrainer, student_path, tokenizer, tmp_path, rest, beta=beta), *NAMES)
    assert len(local["loss"]) == 3
    for name in NAMES:
        assert remote[name] == pytest.approx(local[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    ("beta", "rest"),
    [
        (1.0, {}),
        (0.5, {}),
        (0.0, {}),
        (1.0, {"support": "teacher"}),
        (0.0, {"tail": "renormalise"}),
    ],
    ids=str,
)
def test_a_few_ids_are_a_lower_bound_and_are_learnt_from(
    beta: float, rest: dict[str, Any], student_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path
) -> None:
    whole = {"teacher": reference_url, "top_k": len(tokenizer)}
    few = {"teacher": reference_url, "top_k": 4, **rest}
    bound = history(trainer(RemoteTeacherTrainer, student_path, tokenizer, tmp_path, whole, beta=beta), "loss")
    names = ("loss", "grad_norm", "teacher_mass", "student_mass", "teacher_unscored")
    seen = history(trainer(RemoteTeacherTrainer, student_path, tokenizer, tmp_path, few, beta=beta), *names)
    assert all(math.isfinite(value) for values in seen.values() for value in values)
    assert all(value > 0 for value in seen["grad_norm"])
    assert seen["teacher_unscored"] == [0, 0, 0]
    assert all(0 < mass < 1 for name in ("teacher_mass", "student_mass") for mass in seen[name])
    if rest.get("tail") is None:
        assert 0 < seen["loss"][0] <= bound["loss"][0] + 1e-5


def test_equal_models_have_nothing_to_learn(
    tiny_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path
) -> None:
    rest = {"teacher": reference_url, "top_k": 4}
    seen = history(trainer(RemoteTeacherTrainer, tiny_path, tokenizer, tmp_path, rest, beta=1.0, max_steps=1), *NAMES)
    assert seen["loss"] == pytest.approx([0.0], abs=1e-6)
    assert seen["grad_norm"] == pytest.approx([0.0], abs=1e-4)


def test_what_the_teacher_could_not_score_is_left_out(
    student_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ReferenceClient(reference_url) as client:
        plain = client.submit

        def holed(*args: Any, **kwargs: Any) -> Any:
            result: ScoreResult = plain(*args, **kwargs).result()
            result.status[0] = Status.NONFINITE
            first = int(result.completion_lengths[0])
            for values in result.extras.values():
                if values.dtype.kind == "f":
                    values[:first] = math.nan
            done: Any = type("Done", (), {"result": lambda _: result})()
            return done

        monkeypatch.setattr(client, "submit", holed)
        rest = {"teacher": client, "top_k": 4}
        one = trainer(RemoteTeacherTrainer, student_path, tokenizer, tmp_path, rest, max_steps=1)
        seen = history(one, "loss", "grad_norm", "teacher_unscored")
    assert seen["teacher_unscored"] == [1]
    assert all(math.isfinite(value) for value in seen["loss"] + seen["grad_norm"])


def test_a_teacher_of_another_vocabulary_is_refused(
    student_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(student_path)
    model.resize_token_embeddings(len(tokenizer) + 3)
    larger = tmp_path / "larger"
    model.save_pretrained(larger)
    tokenizer.save_pretrained(larger)
    with pytest.raises(ReferenceUnusable, match="vocabulary"):
        trainer(RemoteTeacherTrainer, larger, tokenizer, tmp_path, {"teacher": reference_url})


def test_two_teachers_are_one_too_many(student_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path) -> None:
    rest = {"teacher": reference_url, "teacher_model": str(student_path)}
    with pytest.raises(ValueError, match="teacher_model"):
        trainer(RemoteTeacherTrainer, student_path, tokenizer, tmp_path, rest)
