"""The kit for tests of plugins names what is wrong with a plugin, and passes a right one."""

import random
import sys
from typing import Any

import pytest
import torch
from ganlab_plugins.gradient_penalty import GradientPenalty
from ganlab_plugins.hinge import Hinge
from pydantic import PrivateAttr
from torch import Tensor, nn

from ganlab import Losses, Plugin, Run, hookimpl
from ganlab.testing import (
    RULES,
    Broken,
    GoldenLogits,
    LinearCritic,
    NotApplicable,
    Rule,
    Subject,
    check_plugin,
    examine,
    parametrize_with_rules,
    seeded,
)

RULE = {rule.name: rule for rule in RULES}


class Right(Plugin):
    """The mean square of what the generator makes (an example, 2026)."""

    weight: float = 0.5
    """Weight of the term."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        return {f"G/{self.name}": self.weight * fake.square().mean()}


class Undescribed(Right):
    __doc__ = ""


class Sourceless(Right):
    """The mean square of what the generator makes."""


class WithoutText(Right):
    """It has an option without a text (2026)."""

    power: float = 2.0


class WithoutDefault(Right):
    """It has an option without a default (2026)."""

    power: float
    """The exponent."""


class Misspelt(Right):
    """It implements a hook that is not there (2026)."""

    @hookimpl
    def penaltie(self, real: Tensor) -> Losses:
        return {}


class UnknownArgument(Plugin):
    """It asks for what its hook is not given (2026)."""

    @hookimpl
    def generator_loss(self, sr: Tensor) -> Losses:
        return {f"G/{self.name}": sr.square().mean()}


class DefaultArgument(Plugin):
    """It gives an argument of a hook a default (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Any = None) -> Losses:
        return {f"G/{self.name}": fake.square().mean()}


class NoWrapper(Plugin):
    """It implements a chained hook, but not as a wrapper (2026)."""

    @hookimpl
    def augment(self, images: Tensor) -> Tensor:
        return images


class HalfAState(Right):
    """It saves a state that it cannot load (2026)."""

    def state_dict(self) -> dict[str, Any]:
        return {}


class Detached(Plugin):
    """Its loss has no gradient (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        return {f"G/{self.name}": fake.detach().square().mean()}


class FirstDerivative(Plugin):
    """A penalty that forgets that its gradient is differentiated again (2026)."""

    @hookimpl
    def penalty(self, discriminator: nn.Module, real: Tensor) -> Losses:
        seen = real.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(seen).mean(), seen)
        return {f"D/{self.name}": gradient.square().sum()}


class RootAtZero(Plugin):
    """Its gradient is not finite, though its value is (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        return {f"G/{self.name}": (fake - fake.detach()).square().mean().sqrt()}


class ReachesBoth(Plugin):
    """Its penalty on D has a gradient on G, too (2026)."""

    _run: Any = PrivateAttr(None)

    @hookimpl
    def run_start(self, run: Run) -> None:
        self._run = run

    @hookimpl
    def penalty(self, discriminator: nn.Module, condition: Tensor) -> Losses:
        return {f"D/{self.name}": discriminator(self._run.G(condition)).square().mean()}


class OtherName(Plugin):
    """Its loss has a name of its own (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        return {"G/mine": fake.square().mean()}


class DrawsItself(Plugin):
    """It draws from a random stream that the run does not seed (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        return {f"G/{self.name}": (1 + random.random()) * fake.square().mean()}


class ForgetsItsState(Plugin):
    """It counts its calls, and saves no count (2026)."""

    _calls: int = PrivateAttr(0)

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        self._calls += 1
        return {f"G/{self.name}": self._calls * fake.square().mean()}


class ForgetsItsFigure(Plugin):
    """It counts the iterations, logs the count, and saves it nowhere (2026)."""

    observes = True
    _count: int = PrivateAttr(0)

    @hookimpl
    def iteration_end(self) -> None:
        self._count += 1

    @hookimpl
    def evaluate(self) -> dict[str, float]:
        return {self.name: float(self._count)}


class Sums(Plugin):
    """It takes the sum over the batch (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        return {f"G/{self.name}": fake.square().flatten(1).mean(1).sum()}


class NeedsTwo(Plugin):
    """It takes the spread of a batch, which one sample has not (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        spread = (fake - fake.mean(0)).square().sum(0) / (len(fake) - 1)
        return {f"G/{self.name}": spread.mean()}


class EvenSizes(Plugin):
    """It cuts images into blocks of 2 x 2 pixels (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        count, channels, height, width = fake.shape
        blocks = fake.view(count, channels, height // 2, 2, width // 2, 2)
        return {f"G/{self.name}": blocks.mean((3, 5)).square().mean()}


class Rounds(Plugin):
    """It computes its loss in bfloat16 (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        return {f"G/{self.name}": fake.bfloat16().square().mean()}


class ReadsAValue(Plugin):
    """It reads a value from the device in a tensor hook (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        return {f"G/{self.name}": fake.square().mean() / (1 + fake.square().mean().item())}


class InPlace(Plugin):
    """It changes the batch in place (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor) -> Losses:
        real.data.clamp_(0.1, 0.9)
        return {f"G/{self.name}": (fake - real).square().mean()}


class ImagesOnly(Plugin):
    """It fails on samples that are not images, and does not say so (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        return {f"G/{self.name}": fake.diff(dim=3).square().mean()}


class BentMean(Plugin):
    """Its loss is the square of a mean over the batch (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        return {f"G/{self.name}": fake.mean().square()}


class MeanOfAll(Plugin):
    """The same, with the mean over the whole batch (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        return {f"G/{self.name}": self.world.mean(fake.mean()).square()}


class DrawsInALoop(Plugin):
    """It draws a number for each image, one after another (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        weights = torch.stack([torch.rand((), generator=self.rng) for _ in fake])
        return {f"G/{self.name}": (weights * fake.square().flatten(1).mean(1)).mean()}


class KeepsItsRows(Right):
    """It keeps the mean of the images that it saw last (2026)."""

    _last: Tensor = PrivateAttr(default_factory=lambda: torch.zeros(()))

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        self._last = fake.detach().mean()
        return {f"G/{self.name}": fake.square().mean()}

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last = state["last"]


class KeepsImages(KeepsItsRows):
    """It keeps the images that it saw last (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        self._last = fake.detach().clone()
        return {f"G/{self.name}": fake.square().mean()}


class KeepsItsRank(KeepsItsRows):
    """It keeps the number of the process (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        self._last = torch.tensor(float(self.world.rank))
        return {f"G/{self.name}": fake.square().mean()}


class AsksAlone(Plugin):
    """It asks for a mean in the first process only (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        mean = self.world.mean(fake.mean()) if self.world.leads else fake.mean()
        return {f"G/{self.name}": fake.square().mean() + 0 * mean}


class Communicates(Plugin):
    """It communicates by itself (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        if self.world.size > 1:
            torch.distributed.all_reduce(fake.detach().mean())
        return {f"G/{self.name}": fake.square().mean()}


class Refuses(Right):
    """It refuses a run of several processes (2026)."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        if run.world.size > 1:
            raise self.error("it needs the whole batch; train it by one process")


class Ends(Plugin):
    """It ends the process (2026)."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> Losses:
        sys.exit(3)


class FailsWhenMade(Right):
    """It raises an error when it is made (2026)."""

    def model_post_init(self, context: Any) -> None:
        raise RuntimeError("not today")


TWO = "is_the_same_by_two_processes"
BROKEN = [
    (Undescribed, "says_what_it_is", "begin with one sentence"),
    (Sourceless, "names_its_source", "names no source"),
    (WithoutText, "describes_its_options", "no text describes power"),
    (WithoutDefault, "is_made_from_its_options", "power: Field required; give the option"),
    (Misspelt, "fits_the_hooks", "no hook is named 'penaltie'; did you mean 'penalty'?"),
    (UnknownArgument, "fits_the_hooks", "'sr'"),
    (DefaultArgument, "fits_the_hooks", "generator_loss has a default for real"),
    (NoWrapper, "fits_the_hooks", "augment is chained"),
    (HalfAState, "keeps_its_state_whole", "has state_dict alone"),
    (FailsWhenMade, "is_made_from_its_options", "RuntimeError: not today (test_plugin_kit.py:"),
    (Ends, "trains_its_own_network", "SystemExit: 3 (test_plugin_kit.py:"),
    (Detached, "trains_its_own_network", "G/detached has no gradient on G"),
    (FirstDerivative, "trains_its_own_network", "create_graph=True in torch.autograd.grad()"),
    (RootAtZero, "trains_its_own_network", "not finite"),
    (ReachesBoth, "trains_its_own_network", "has a gradient on G in the step of D"),
    (OtherName, "trains_its_own_network", "build the name from self.name"),
    (DrawsItself, "repeats_and_resumes", "under the same seed; draw from self.rng"),
    (ForgetsItsState, "repeats_and_resumes", "in a resumed run; keep in state_dict"),
    (
        ForgetsItsFigure,
        "repeats_and_resumes",
        "in a resumed run; keep in state_dict",
    ),
    (NeedsTwo, "takes_a_batch_of_one", "G/needs_two"),
    (EvenSizes, "takes_odd_sizes", "RuntimeError: shape"),
    (Rounds, "agrees_in_bfloat16", "G/rounds is torch.bfloat16"),
    (Sums, "takes_a_batch_in_parts", "take the mean over the images"),
    (Sums, TWO, "with two; take the mean over the images, not the sum"),
    (BentMean, TWO, "take self.world.mean(...) of it"),
    (DrawsInALoop, TWO, "draw for all images at once, the images being the first dimension"),
    (DrawsItself, TWO, "draw from self.rng or self.host_rng"),
    (KeepsItsRows, TWO, "its state['last'] is "),
    (KeepsImages, TWO, "its state['last'] has the shape [10, 3, 32, 32] with one process"),
    (KeepsItsRank, TWO, "its state['last'] is not the same in both of two processes; keep what"),
    (AsksAlone, TWO, "ask self.world for the same things in the same order in all of them"),
    (Communicates, TWO, "it communicates by torch.distributed; ask self.world instead"),
    (ReadsAValue, "is_replayed_alike", "capturable = False"),
    (ImagesOnly, "says_where_it_does_not_fit", "IndexError: Dimension out of range"),
    (InPlace, "passes_check", "its generator_loss changes the batch in place"),
]


@pytest.mark.parametrize(("plugin", "rule", "words"), BROKEN)
def test_a_plugin_that_is_broken_in_one_way_is_told_the_rule_and_the_remedy(
    plugin: type[Plugin], rule: str, words: str
) -> None:
    with pytest.raises(Broken) as told:
        RULE[rule](plugin)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.long
@pytest.mark.parametrize(("plugin", "rule", "words"), BROKEN)
def test_check_plugin_names_the_rule_that_is_broken(
    plugin: type[Plugin], rule: str, words: str
) -> None:
    with pytest.raises(Broken, match=rf"(?s)breaks the contract.*  {rule}: ") as told:
        check_plugin(plugin)
    assert words in str(told.value)


@pytest.mark.parametrize("plugin", [WithoutDefault, FailsWhenMade])
def test_a_plugin_that_cannot_be_made_is_told_so_once(plugin: type[Plugin]) -> None:
    for rule in ("trains_its_own_network", "says_where_it_does_not_fit", "passes_check"):
        with pytest.raises(NotApplicable, match="it cannot be made from its options"):
            RULE[rule](plugin)


def test_a_mean_over_the_whole_batch_is_the_same_by_two_processes() -> None:
    RULE[TWO](MeanOfAll)


def test_a_plugin_may_refuse_a_run_of_two_processes() -> None:
    with pytest.raises(NotApplicable, match="two processes: it needs the whole batch; train it"):
        RULE[TWO](Refuses)


def test_a_right_plugin_passes_every_rule() -> None:
    found = check_plugin(Right, known={"ones": (lambda p: p.generator_loss(torch.ones(2))["G/right"], 0.5)})  # noqa: E501  # fmt: skip
    assert [one.rule for one in found] == [*RULE]
    assert {one.rule for one in found if one.left_out} == set()


def test_a_value_that_is_not_the_stated_one_breaks_a_rule() -> None:
    subject = Subject.of(Right(weight=2.0), known={"ones": (lambda p: p.weight, 3.0)})
    (found,) = examine(subject, {}, [RULE["has_the_known_values"]])
    assert found.broken == "ones is 2, not 3"


def test_a_rule_that_is_left_out_keeps_its_reason_and_an_unknown_one_is_refused() -> None:
    reason = {"takes_a_batch_in_parts": "it compares the images of a batch"}
    (found,) = examine(Subject.of(Sums), reason, [RULE["takes_a_batch_in_parts"]])
    assert (found.broken, found.left_out) == ("", "it compares the images of a batch")
    with pytest.raises(KeyError, match="no rule is named takes_a_batch_in_part'"):
        list(examine(Subject.of(Sums), {"takes_a_batch_in_part": "a slip"}))
    with pytest.raises(KeyError, match="no rule is named takes_a_batch_in_part'"):
        parametrize_with_rules(Sums, leave_out={"takes_a_batch_in_part": "a slip"})


@parametrize_with_rules(Right(weight=2.0), leave_out={"passes_check": "slow here"})
def test_the_rules_are_tests_of_pytest(plugin: Subject, rule: Any) -> None:
    assert plugin.options == {"weight": 2.0}
    rule(plugin)


def test_the_fixtures_give_a_run_a_critic_and_logits(
    tiny_run: Any, linear_critic: type[LinearCritic], golden_logits: GoldenLogits
) -> None:
    run = tiny_run(Right(weight=2.0), batch_size=1)
    assert run.recipe.plugins["right"].weight == 2.0
    assert (run.recipe.batch_size, run.scale, run.folder) == (1, 4, None)
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    penalty = seeded(GradientPenalty()).penalty(linear_critic(3.0), images, images)
    assert penalty["D/gradient_penalty"].item() == pytest.approx(40)
    assert Hinge().discriminator_loss(*golden_logits).item() == pytest.approx(6.75)


def test_every_rule_says_in_one_sentence_what_it_asks() -> None:
    assert len(RULE) == len(RULES)
    assert all(isinstance(rule, Rule) and rule.sentence.endswith(".") for rule in RULES)
