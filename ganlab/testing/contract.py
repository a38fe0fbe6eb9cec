"""The contract of a plugin as a whole: `check_plugin`, and the same as tests of pytest."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ganlab.plugin import Plugin
from ganlab.testing.experiment import Broken, Known, NotApplicable, Subject
from ganlab.testing.rules import RULES, Rule

UnderTest = type[Plugin] | Plugin | str | Subject


@dataclass(frozen=True, slots=True)
class Finding:
    """How a plugin stands to one rule."""

    rule: str
    broken: str = ""
    """How it breaks the rule, and what to do; "" when it keeps it."""
    left_out: str = ""
    """Why the rule was not checked."""


def check_plugin(
    plugin: UnderTest,
    *,
    beside: Iterable[Plugin] = (),
    known: Known | None = None,
    leave_out: Mapping[str, str] | None = None,
) -> list[Finding]:
    """Check a plugin against the whole contract, in small runs on the CPU; some seconds.

        check_plugin(MyPenalty(weight=2.0), known={
            "slope 3": (lambda plugin: plugin.penalty(LinearCritic(3), images)["D/my_penalty"], 40)
        })

    :param plugin: a class (its options are their examples, else their defaults), a plugin with its
        options, or the name of an installed one.
    :param beside: plugins that it needs beside it in a recipe.
    :param known: what is computed -> (function of the plugin, its value in closed form).
    :param leave_out: name of a rule -> why it cannot hold for this plugin.
    :returns: a finding for each rule.
    :raises Broken: with a line for each rule that it breaks.
    """
    subject = Subject.of(plugin, beside=tuple(beside), known=known or {})
    found = list(examine(subject, leave_out or {}))
    if lines := [f"  {one.rule}: {one.broken}" for one in found if one.broken]:
        raise Broken("\n".join([f"{subject.name} breaks the contract of plugins:", *lines]))
    return found


def examine(
    subject: Subject, leave_out: Mapping[str, str], rules: Iterable[Rule] = RULES
) -> Iterator[Finding]:
    """How a plugin stands to each rule, one after another.

    :raises KeyError: when `leave_out` names what is no rule.
    """
    _require_names(leave_out)
    for rule in rules:
        if reason := leave_out.get(rule.name):
            yield Finding(rule.name, left_out=reason)
            continue
        try:
            rule(subject)
            yield Finding(rule.name)
        except Broken as fault:
            yield Finding(rule.name, broken=str(fault))
        except NotApplicable as reason:
            yield Finding(rule.name, left_out=str(reason))


def parametrize_with_rules(
    *plugins: UnderTest,
    beside: Iterable[Plugin] = (),
    known: Known | None = None,
    leave_out: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Decorator that makes one test of pytest for each plugin and rule.

        @parametrize_with_rules(MyPenalty)
        def test_it_keeps_the_contract(plugin, rule):
            rule(plugin)

    Arguments as of `check_plugin`. A rule that is not about the plugin is a skipped test.

    :raises KeyError: when `leave_out` names what is no rule.
    """
    import pytest

    _require_names(leave_out or {})

    def param(subject: Subject, rule: Rule) -> Any:
        reason = (leave_out or {}).get(rule.name)
        marks = [pytest.mark.skip(reason=reason)] if reason else []
        return pytest.param(subject, _tested(rule), id=f"{subject.name}-{rule.name}", marks=marks)

    subjects = [Subject.of(one, beside=tuple(beside), known=known or {}) for one in plugins]
    return pytest.mark.parametrize(
        ("plugin", "rule"), [param(subject, rule) for subject in subjects for rule in RULES]
    )


def _require_names(leave_out: Mapping[str, str]) -> None:
    for unknown in leave_out.keys() - {rule.name for rule in RULES}:
        raise KeyError(f"leave_out: no rule is named {unknown}")


def _tested(rule: Rule) -> Callable[[UnderTest], None]:
    """A rule that skips the test of pytest where it does not apply."""

    def keep(plugin: UnderTest) -> None:
        import pytest

        try:
            rule(plugin)
        except NotApplicable as reason:
            pytest.skip(str(reason))

    return keep
