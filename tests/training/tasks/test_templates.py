"""Templates: fields are put in, all other braces are themselves, and the answer cannot be told."""

from __future__ import annotations

import pytest
from grpo_training.config import ConfigError
from grpo_training.tasks.templates import Template

ENTRY = {"question": "1+{x}?", "answer": "2", "level": 3, "metadata": {"hint": "add", "answer": "two"}}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{question}\nResult:", "1+{x}?\nResult:"),
        ("{question} in \\boxed{}", "1+{x}? in \\boxed{}"),
        ("{question} in \\boxed{{answer}}", "1+{x}? in \\boxed{answer}"),
        ("\\boxed{{{question}}}", "\\boxed{1+{x}?}"),
        ("{level}/{hint}", "3/add"),
        ('{question} as {"a": {"b": 1}}', '1+{x}? as {"a": {"b": 1}}'),
        ("{question} \\sum_{i=1}^{10} {0} { hint }", "1+{x}? \\sum_{i=1}^{10} {0} { hint }"),
        ("{question} {{}} }} {", "1+{x}? {} }} {"),
    ],
)
def test_what_is_put_in_and_what_stays(template: str, text: str) -> None:
    assert Template(template).render(ENTRY, "row 1") == text


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{question} ({answer})", r"names answer, .* write \{\{answer\}\}"),
        ("{question} \\boxed{answer}", "names answer"),
        ("no field", "names no field"),
        ("\\boxed{}", "names no field"),
        ("{metadata[answer]}", r"write \{metadata\} alone"),
        ("{question.__class__}", "alone"),
        ("{question!r}", "alone"),
        ("{level:>999999999}", "alone"),
    ],
)
def test_templates_that_are_refused_before_there_is_an_entry(template: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Template(template)


@pytest.mark.parametrize(
    ("template", "entry", "says"),
    [
        ("{nothing}", {}, r"'nothing', but row 7 has only: hint, level, metadata, question\. Write \{\{nothing\}\}"),
        ("{metadata}", {}, "row 7: field metadata is an object"),
        ("{level}", {"level": None}, "row 7: field level is null"),
        ("{level}", {"level": [1]}, "row 7: field level is a list"),
        ("{level}", {"level": True}, "row 7: field level is a boolean"),
    ],
)
def test_fields_that_are_no_text(template: str, entry: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Template(template).render(ENTRY | entry, "row 7")
