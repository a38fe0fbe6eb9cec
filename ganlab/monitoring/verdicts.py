"""Rules that find failed training in a run's logged figures, and give verdicts in plain words.

A rule reads plain numbers only, so the same history always gets the same verdicts, also in a
resumed run. Each threshold stands beside the rule that uses it, with its reason.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import median
from typing import Literal

PERSISTENCE = 5  # watched steps that must agree, so that one odd batch gives no verdict
EVALUATIONS = 2  # evaluations that must agree
_TOLD_BY = ("gradient/", "health/", "evaluation/")
Wanted = Literal["higher", "lower", "any"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The finding that training fails: how, since when, and which figures show it."""

    name: str
    """One word: saturated, exploded, collapsed, ..."""
    since: int
    """The iteration at which the failure began, as far as the history shows."""
    sentence: str


@dataclass(slots=True)
class History:
    """The lines of stats.jsonl that come from watched steps and evaluations."""

    lines: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def add(self, iteration: int, figures: dict[str, float]) -> None:
        """Add a line, if it comes from a watched step or an evaluation."""
        if any(name.startswith(_TOLD_BY) for name in figures):
            self.lines.append((iteration, figures))

    def of(self, name: str) -> list[tuple[int, float]]:
        """The finite values of a figure, each with its iteration."""
        return [
            (iteration, figures[name])
            for iteration, figures in self.lines
            if math.isfinite(figures.get(name, math.nan))
        ]

    def lasting(
        self, name: str, fails: Callable[[float], bool], count: int, wanted: Wanted = "any"
    ) -> list[tuple[int, float]]:
        """The unbroken row of failing values at a figure's end; empty when shorter than `count`.

        :param wanted: "higher" or "lower", the direction in which the figure improves. Then the
            result is also empty while the figure still improves: the last value is better than all
            the others in the row by 2 %. So a generator that has just begun to learn does not fail.
        """
        tail = list(takewhile(lambda pair: fails(pair[1]), reversed(self.of(name))))[::-1]
        if len(tail) < count:
            return []
        *before, last = (value for _, value in tail)
        better = {
            "higher": before and last > max(before) + 0.02 * abs(last),
            "lower": before and last < min(before) - 0.02 * abs(last),
        }
        return [] if better.get(wanted) else tail


def _exploded(history: History) -> Verdict | None:
    """Exploded: D's logits are far too large, or a network's steps are, relative to its weights.

    Logits of trained critics stay within some hundreds (WGAN-GP's slope of 1 times the distance
    between the images). With a suitable learning rate, Adam's step is 1e-4 to 1e-2 of the weights.
    """
    for name in ("D/real_logits", "D/fake_logits"):
        if tail := history.lasting(name, lambda logit: abs(logit) > 1000, 3):
            since, largest = tail[0][0], max((abs(v) for _, v in tail))
            return Verdict(
                "exploded",
                since,
                f"D exploded from iteration {since:,}: its mean logits reached {largest:.2g}",
            )
    for role in ("G", "D"):
        if tail := history.lasting(f"health/{role}_update", lambda ratio: ratio > 0.3, 3):
            since, share = tail[0][0], median(v for _, v in tail)
            return Verdict(
                "exploded",
                since,
                f"{role} exploded from iteration {since:,}: each step changes its weights by "
                f"{share:.0%}; the learning rate is too large",
            )
    return None


def _saturated(history: History) -> Verdict | None:
    """Saturated: D is sure of every image, and its logits no longer give G a useful gradient.

    D is sure when the median share of logits with more than 99 % certainty is at least 85 %, over
    five watched steps. This is known only where the sign of a logit is D's decision. The gradient
    of `G/adversarial` is useless when its median is at most a tenth of the largest of its first
    five values, which are watched as the game begins. Healthy games show one of the two, not both.
    """
    sure = _medians(history.of("health/saturation"))
    pulls = history.of("gradient/G/adversarial")
    gradient = _medians(pulls)
    if not sure or not gradient:
        return None
    at_first = max(value for _, value in pulls[:PERSISTENCE])
    if sure[-1][1] < 0.85 or gradient[-1][1] > at_first / 10:
        return None
    since = _since(sure, lambda share: share >= 0.85)
    logit = min(
        _medians(history.of(name))[-1][1] * sign
        for name, sign in (("D/real_logits", 1), ("D/fake_logits", -1))
    )
    fold = at_first / gradient[-1][1] if gradient[-1][1] else math.inf
    return Verdict(
        "saturated",
        since,
        f"D saturated from iteration {since:,}: logits beyond {logit:.2g}, generator gradient "
        f"fell {fold:,.0f}-fold",
    )


def _static(history: History) -> Verdict | None:
    """Static: a network's weights no longer change. float32 resolves 6e-8 of a number.

    A step of exactly 0 under a gradient does not count: the recipe set a learning rate of 0.
    """
    for role in ("G", "D"):
        still: list[int] = []
        for iteration, figures in reversed(history.lines):
            ratio = figures.get(f"health/{role}_update")
            pulls = [v for name, v in figures.items() if name.startswith(f"gradient/{role}/")]
            if ratio is None or not math.isfinite(ratio):
                continue
            if ratio >= 1e-8 or (ratio == 0 and any(pulls)):
                break
            still.append(iteration)
        if len(still) >= PERSISTENCE:
            sentence = (
                f"{role} stands still from iteration {still[-1]:,}: its steps change no weight"
            )
            return Verdict("static", still[-1], sentence)
    return None


@dataclass(frozen=True, slots=True)
class Lasting:
    """A rule: training fails when the last values of a figure are all beyond a bound."""

    name: str
    figure: str
    fails: Callable[[float], bool]
    sentence: str
    """Has the fields `{since}`, the first failing iteration, and `{value}`, the last value."""
    wanted: Wanted = "any"
    count: int = EVALUATIONS
    """How many values must fail."""
    beside: str = ""
    """A second figure, of the same iterations, which must confirm each failing value."""
    confirmed: Callable[[float, float], bool] = lambda value, other: True
    """Whether a failing value is confirmed by the second figure."""

    def __call__(self, history: History) -> Verdict | None:
        found = history.lasting(self.figure, self.fails, self.count, self.wanted)
        if self.beside:
            others = dict(history.of(self.beside))
            found = [pair for pair in reversed(found) if pair[0] in others]
            found = list(takewhile(lambda pair: self.confirmed(pair[1], others[pair[0]]), found))
            found.reverse()
        if len(found) < self.count:
            return None
        since, value = found[0][0], found[-1][1]
        return Verdict(self.name, since, self.sentence.format(since=since, value=value))


RULES: tuple[Callable[[History], Verdict | None], ...] = (
    _exploded,
    _saturated,
    _static,
    # G makes nearly the same image from every input
    Lasting(
        "collapsed",
        "health/spread",
        lambda spread: spread < 0.1,
        "G collapsed from iteration {since:,}: its samples vary {value:.2g} times as much as real "
        "ones",
        wanted="higher",
    ),
    # 20 dB is a mean error of 25 grey levels between G's input and SR shrunk again: colours or
    # structure are lost. Bicubic and every trained generator so far are above 28 dB.
    Lasting(
        "drifted",
        "evaluation/lr_psnr",
        lambda psnr: psnr < 20,
        "G drifted from its input from iteration {since:,}: its images, shrunk again, reach only "
        "{value:.1f} dB against the LR images",
        wanted="higher",
    ),
    # eight times the fine detail of the photographs that SR should look like
    Lasting(
        "noisy",
        "evaluation/hf_ratio",
        lambda ratio: ratio > 8,
        "G adds noise from iteration {since:,}: its images have {value:.1f} times the fine detail "
        "of the original images",
        wanted="lower",
    ),
    # A sharp picture has more power at every frequency. So the power at the stride of the
    # upsampling must be more than four times that of the original images, and this ratio more than
    # four times that of the fine detail. Healthy generators reach 1.1 times.
    Lasting(
        "checkerboard",
        "health/checkerboard",
        lambda power: power > 4,
        "G makes a checkerboard pattern from iteration {since:,}: its images have {value:,.0f} "
        "times the power of the original images at the stride of its upsampling",
        wanted="lower",
        beside="evaluation/hf_ratio",
        confirmed=lambda power, detail: power > 4 * detail,
    ),
    # D tells real from fake on its training images, but hardly on others. Healthy games on six
    # photographs and some dead leaves, a small training set, reach a gap of 0.25 to 0.55.
    Lasting(
        "memorised",
        "health/held_out_gap",
        lambda gap: gap > 0.75,
        "D has memorised its training images from iteration {since:,}: on held-out images its gap "
        "between real and fake is {value:.0%} smaller",
        count=3,
        beside="health/trained_accuracy",
        confirmed=lambda gap, accuracy: accuracy > 0.95,
    ),
)


def find_verdicts(history: History) -> Iterator[Verdict]:
    """The verdicts that the engine's own rules give for a run's history."""
    for rule in RULES:
        if found := rule(history):
            yield found


def _medians(values: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The median of every five watched steps in a row, with the iteration of the first."""
    return [
        (
            values[end - PERSISTENCE][0],
            median(value for _, value in values[end - PERSISTENCE : end]),
        )
        for end in range(PERSISTENCE, len(values) + 1)
    ]


def _since(values: list[tuple[int, float]], fails: Callable[[float], bool]) -> int:
    """The iteration at which the row of failing values at the end of a figure begins."""
    return list(takewhile(lambda pair: fails(pair[1]), reversed(values)))[-1][0]
