"""The section `distillation`: how teachers may be written; what is refused since it would do nothing, or something wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from grpo_training.config import DistillConfig, TrainConfig
from pydantic import ValidationError

URL = "http://teacher:8000"


def config(distillation: dict[str, Any], **sections: dict[str, Any]) -> TrainConfig:
    return TrainConfig.model_validate({"task": {"name": "basic_arithmetic"}, "distillation": distillation, **sections})


@pytest.mark.parametrize(
    ("written", "urls"),
    [
        (URL, {"default": (URL,)}),
        ([URL, "http://other:8000/"], {"default": (URL, "http://other:8000")}),
        ({"math": URL, "code": ["http://code:1"]}, {"math": (URL,), "code": ("http://code:1",)}),
        ({"math": {"urls": URL, "max_wait": 5}}, {"math": (URL,)}),
    ],
)
def test_teachers_may_be_a_url_a_list_or_names(written: Any, urls: dict[str, tuple[str, ...]]) -> None:
    options = DistillConfig.model_validate({"teachers": written})
    assert {name: teacher.urls for name, teacher in options.teachers.items()} == urls


def test_null_takes_teachers_away_for_targets() -> None:
    options = DistillConfig.model_validate({"teachers": None, "targets": "files", "kind": "forward"})
    assert not options.teachers


@pytest.mark.parametrize(
    ("kind", "support", "means"),
    [
        ("sampled", None, "sampled"),
        ("forward", None, "teacher"),
        ("jsd", None, "teacher"),
        ("reverse", None, "student"),
        ("skew_reverse", None, "student"),
        ("reverse", "teacher", "teacher"),
        ("forward", "union", "union"),
    ],
)
def test_the_support_follows_the_kind(kind: str, support: str | None, means: str) -> None:
    options = DistillConfig.model_validate({"teachers": URL, "kind": kind, "support": support})
    assert options.ids_from == means


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kind": "sampled", "support": "teacher"}, "support"),
        ({"kind": "sampled", "temperature": 0.5}, "temperature"),
        ({"kind": "sampled", "top_k": 8}, "top_k"),
        ({"kind": "sampled", "tail": "none"}, "tail"),
        ({"kind": "forward", "clip": 5.0}, "clip"),
        ({"kind": "forward", "beta": 0.1}, "beta"),
        ({"kind": "reverse", "alpha": 0.2}, "alpha"),
        ({"kind": "forward", "tail": "renormalise", "top_k": 1}, "renormalise"),
        ({"kind": "forward", "tail": "renormalise", "support": "sampled"}, "renormalise"),
        ({"kind": "jsd", "beta": 1.5}, "beta"),
        ({"kind": "skew_forward", "alpha": 1.0}, "alpha"),
        ({"kind": "forward", "top_k": 0}, "top_k"),
        ({"coef": 0}, "coef"),
        ({"teachers": {}}, "teachers"),
        ({"teachers": []}, "urls"),
        ({"teachers": {"math": {"max_wait": 1}}}, "urls"),
        ({"teachers": {"a/b": URL}}, "a/b"),
        ({"teachers": "teacher:8000"}, "http"),
        ({"kind": "k3"}, "kind"),
        ({"targets": "targets", "kind": "forward"}, "either teachers"),
    ],
)
def test_what_has_no_effect_or_a_wrong_one_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        DistillConfig.model_validate({"teachers": URL, **fields})


@pytest.mark.parametrize(
    ("fields", "sections", "named"),
    [
        ({}, {"rollout": {"resample": 2}}, "resample"),
        ({}, {"loss": {"kl_in": "reward"}}, "kl_in"),
        (
            {"kind": "reverse"},
            {"rollout": {"backend": "openai", "base_url": "http://a:1", "model": "m"}},
            "support=student",
        ),
        ({"task_reward": True}, {"rollout": {"group_size": 1}}, "group_size"),
    ],
)
def test_what_does_not_go_with_the_rest_of_the_run_is_refused(
    fields: dict[str, Any], sections: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValidationError, match=named):
        config({"teachers": URL, **fields}, **sections)


@pytest.mark.parametrize(
    ("fields", "sections", "named"),
    [
        ({"kind": "sampled"}, {}, "kind=sampled .* set kind=forward"),
        ({"kind": "reverse"}, {}, "support=student .* set support=teacher"),
        ({"support": "union"}, {}, "support=union"),
        ({"support": "sampled"}, {}, "support=sampled"),
        ({"task_reward": True}, {}, "task_reward"),
        ({"starts_equal": True}, {}, "starts_equal"),
        ({}, {"rollout": {"backend": "openai", "base_url": "http://a:1", "model": "m"}}, "rollout.backend"),
        ({}, {"rollout": {"environment": "module:Class"}}, "rollout.environment"),
    ],
)
def test_what_targets_cannot_give_is_refused(fields: dict[str, Any], sections: dict[str, Any], named: str) -> None:
    assert config({"targets": "targets", "kind": "forward"}).distillation is not None
    with pytest.raises(ValidationError, match=named):
        config({"targets": "targets", "kind": "forward", **fields}, **sections)


def test_one_completion_a_prompt_is_enough_where_the_teacher_alone_teaches() -> None:
    assert config({"teachers": URL}, rollout={"group_size": 1}).rollout.group_size == 1


@pytest.mark.parametrize("kind", ["sampled", "forward", "jsd", "skew_reverse"])
def test_a_written_config_is_read_again_without_its_keys(kind: str) -> None:
    first = config({"teachers": {"math": {"urls": URL, "api_key": "s3cret"}}, "kind": kind})
    written = first.model_dump(mode="json")
    assert "s3cret" not in json.dumps(written)
    assert TrainConfig.model_validate(written).model_dump(mode="json") == written
    written = config({"targets": "targets", "kind": "forward"}).model_dump(mode="json")
    assert TrainConfig.model_validate(written).model_dump(mode="json") == written
