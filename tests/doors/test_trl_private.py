"""What is private to TRL is named in one module, which says which version took it away."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

trl = pytest.importorskip("trl", reason="the TRL door needs the extra `trl`")
import grpo_training.trl  # noqa: E402
from grpo_training.trl import RemoteReferenceGRPOTrainer, TrlChanged, private  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

MEMBERS = [(trainer, name) for trainer, names in private.SEAMS.items() for name in names]
PRIVATE_USE = re.compile(r"(?:self|super\(\))\._[a-z]\w*")


def test_this_trl_has_every_seam() -> None:
    """The failure names the version that broke and the member that it broke."""
    for trainer in private.SEAMS:
        private.require(trainer)
    assert version("trl").startswith(private.TESTED)


@pytest.mark.parametrize(("trainer", "name"), MEMBERS, ids=lambda of: getattr(of, "__name__", of))
def test_a_member_that_is_gone_or_takes_something_else_is_named(
    trainer: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = rf"trl {re.escape(version('trl'))}: {trainer.__name__}.{name} "
    with monkeypatch.context() as patch:
        patch.delattr(trainer, name)
        with pytest.raises(TrlChanged, match=said + "is gone.*pip install 'trl=="):
            private.require(trainer)
    monkeypatch.setattr(trainer, name, lambda self, batch: None)
    with pytest.raises(TrlChanged, match=said + r"takes \(self, batch\)"):
        private.require(trainer)


def test_a_trainer_is_refused_before_it_loads_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trl.GRPOTrainer, "_generate_and_score_completions")
    args = trl.GRPOConfig(beta=0.1, report_to=[], use_cpu=True, bf16=False)
    with pytest.raises(TrlChanged, match="_generate_and_score_completions is gone"):
        RemoteReferenceGRPOTrainer("nowhere", args=args, reference="http://x")


def test_no_other_module_of_the_door_uses_what_is_trls() -> None:
    theirs = "".join(inspect.getsource(inspect.getmodule(trainer)) for trainer in private.SEAMS)  # pyright: ignore[reportArgumentType]
    used: dict[str, Any] = {
        path.name: {
            use for use in PRIVATE_USE.findall(path.read_text()) if re.search(rf"\b{use.split('.')[-1]}\b", theirs)
        }
        for path in Path(grpo_training.trl.__path__[0]).glob("*.py")
        if path.name != "private.py"
    }
    assert not any(used.values()), used
