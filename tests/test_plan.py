"""What is printed before the first step, and what is refused."""

import pytest

from doge_ds.errors import ConfigError
from doge_ds.plan import DomainNeed, plan_table, refuse_too_many_epochs, repetition_warning

NEEDS = [DomainNeed("wiki", 0.75, 300, 1200), DomainNeed("x", None, 50, 40)]


def test_the_table_has_a_row_a_domain_and_targets_no_weight() -> None:
    header, wiki, target, warning = plan_table(NEEDS).splitlines()
    assert header.split() == ["domain", "weight", "sequences", "needed", "there", "epochs"]
    assert wiki.split() == ["wiki", "0.7500", "300", "1,200", "0.25"]
    assert target.split() == ["x", "-", "50", "40", "1.25"]
    assert warning == repetition_warning(NEEDS)


def test_text_that_is_read_more_than_once_is_told_in_one_line() -> None:
    assert repetition_warning([DomainNeed("a", 1.0, 40, 40)]) == ""
    five = [DomainNeed(name, 0.2, 100 + number, 100) for number, name in enumerate("abcde")]
    warning = repetition_warning(five)
    assert warning.startswith("warning: the run reads domains more than once: e 1.04 times, d 1.03 times, c 1.02 times")
    assert "c 1.02 times and 1 more; add text or lower training.steps" in warning


def test_more_epochs_than_allowed_are_refused() -> None:
    refuse_too_many_epochs(NEEDS, 1.25)
    with pytest.raises(ConfigError, match=r"data.max_epochs: x would be read 1.2 times, more than 1.2"):
        refuse_too_many_epochs(NEEDS, 1.2)
