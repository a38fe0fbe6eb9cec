"""The rules that every plugin keeps. Each is a function of the plugin under test; read `RULES`."""

import inspect
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from pydantic import ValidationError
from torch import Tensor

from ganlab.checking.audit import Audit
from ganlab.checkpoint import load_checkpoint, write_checkpoint
from ganlab.commands.check import check_recipe
from ganlab.engine import Loop
from ganlab.errors import GanlabError, RecipeError
from ganlab.evaluation.scores import eval_mode, evaluate_generator
from ganlab.iteration import iterate
from ganlab.monitoring.blame import described, is_interruption, line_in
from ganlab.plugin import Batch, hooks_of
from ganlab.recipe.model import recipe_of
from ganlab.requirements import register
from ganlab.run import Run
from ganlab.runs.folder import RunFolder
from ganlab.runs.journal import Journal
from ganlab.runs.writer import Writer
from ganlab.speed.graphs import WARM_UPS, Graphs
from ganlab.state import state_of
from ganlab.testing.experiment import CPU, Broken, NotApplicable, Subject, said
from ganlab.testing.recorder import CpuRecorder
from ganlab.testing.two_ranks import compare_with_two
from ganlab.testing.worlds import images, points

LOSSES = {"generator_loss", "discriminator_loss", "penalty"}
FIGURES = {"evaluate", "evaluation_generator", "score_images"}
"""Hooks that shape what an evaluation finds."""
ROUNDING = 0.05  # of a value, by bfloat16
NEAR = 2e-3  # the same for a value near 0
EXACT, LOOSE = 1e-3, 0.5  # of a value, for a batch in parts: without, and with random numbers


def says_what_it_is(subject: Subject) -> None:
    """The docstring begins with one sentence of less than 200 characters."""
    first = _doc(subject.kind).partition("\n\n")[0].replace("\n", " ")
    if not first.endswith((".", ":")) or len(first) >= 200:
        raise Broken(
            f"its docstring begins with {first!r}; begin with one sentence of less than 200 "
            "characters that says what it computes"
        )


def names_its_source(subject: Subject) -> None:
    """The docstring of class or module names a paper (arXiv, doi) or a year."""
    if "sample_real" in subject.answers:
        raise NotApplicable("it brings data")
    text = _doc(subject.kind) + _doc(inspect.getmodule(subject.kind))
    if not re.search(r"arXiv:\d{4}\.\d{4,5}|doi:|(19|20)\d\d", text):
        raise Broken(
            "its docstring names no source; name the paper (arXiv:1704.00028, doi:..., or authors "
            "and year); for an idea of your own, yourself and the year"
        )


def describes_its_options(subject: Subject) -> None:
    """Every option has a string under it that describes it."""
    fields = subject.kind.model_fields.items()
    missing = [option for option, field in fields if not field.description]
    if missing:
        raise Broken(f"no text describes {', '.join(missing)}; write a string under each option")


def is_made_from_its_options(subject: Subject) -> None:
    """It can be made from its defaults, or from the examples of its options."""
    try:
        subject.made()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = ".".join(map(str, first["loc"]))
        raise Broken(
            f"it cannot be made from its defaults: {option}: {first['msg']}; give the option an "
            f"example, `{option}: ... = Field(examples=[...])`, or test a plugin with its options"
        ) from None


def fits_the_hooks(subject: Subject) -> None:
    """It implements hooks that are there, with arguments that they have, and no defaults."""
    if not hooks_of(subject.kind):
        raise Broken("it implements no hook; mark a method with @hookimpl")
    for hook in hooks_of(subject.kind):
        for parameter in inspect.signature(getattr(subject.kind, hook)).parameters.values():
            if parameter.default is not parameter.empty:
                raise Broken(f"its {hook} has a default for {parameter.name}; leave it out")
    plugin = subject.kind.model_construct()
    register(recipe_of("recipe.toml", {subject.name: plugin}, iterations=1), whole=False)


def keeps_its_state_whole(subject: Subject) -> None:
    """`state_dict` and `load_state_dict` come together."""
    has = {name for name in ("state_dict", "load_state_dict") if hasattr(subject.kind, name)}
    if len(has) == 1:
        raise Broken(f"has {' '.join(has)} alone; define both state_dict and load_state_dict")


def trains_its_own_network(subject: Subject) -> None:
    """Each loss is finite, and its gradient reaches its own network and no other."""
    with subject.in_a_folder() as folder:
        run = subject.run(folder)
        iterate(run)  # so that running averages are there, and zero layers have begun to move
        run.iteration += 1
        audit = Audit(run)
        iterate(run, audit)
        mine = own_terms(subject)
        if subject.answers & LOSSES and not mine & {reach.loss for reach in audit.found}:
            raise Broken(f'none of its losses has one of the names {sorted(mine)}; build the name '
                         'from self.name: f"G/{self.name}"')  # fmt: skip


def repeats_and_resumes(subject: Subject) -> None:
    """Equal seeds give equal numbers, and a run that is resumed is the same run."""
    with subject.in_a_folder() as folder:
        run, history = subject.run(folder), []
        for _ in range(3):
            if run.iteration == 2:
                write_checkpoint(state_of(run), folder / "checkpoints")
            history.append({n: v.detach().clone() for n, v in iterate(run).items()})
            run.iteration += 1
        torch.manual_seed(987)  # whatever happened before must not matter
        torch.rand(7)
        again = subject.run(folder)
        _require_same(iterate(again), history[0], "under the same seed", _DRAWS)
        load_checkpoint(again, folder / "checkpoints")
        _require_same(iterate(again), history[2], "in a resumed run", _STATE)
        again.iteration += 1
        if FIGURES & set(hooks_of(subject.kind)):
            _require_same(_evaluated(again), _evaluated(run), "in a resumed run", _STATE)
        one, other = (list(each.G.state_dict().values()) for each in (run, again))
        if not all(map(torch.equal, one, other)):
            raise Broken(f"the weights of G differ in a resumed run; {_STATE}")


_DRAWS = "draw from self.rng or self.host_rng"
_STATE = "keep in state_dict, and restore in load_state_dict, all that changes from step to step"


def takes_a_batch_of_one(subject: Subject) -> None:
    """It trains on a batch of one sample, and is evaluated."""
    with subject.in_a_folder() as folder, patch("ganlab.evaluation.health.SAMPLES", 8):
        run = subject.run(folder, batch_size=1)
        _require_finite(iterate(run), "on a batch of one sample")
        run.iteration += 1
        journal = Journal(RunFolder(folder), total=8, images=1, report_every=1)
        journal.console.quiet = True
        with closing(Writer()) as writer:
            Loop(run, journal, writer).evaluate()


def takes_odd_sizes(subject: Subject) -> None:
    """It trains on images of 33 x 33 pixels, and its generator enlarges images of any size."""
    with subject.in_a_folder() as folder:
        run = subject.run(folder)
        if len(run.condition_shape) != 3:
            raise NotApplicable("it is not for images")
        _require_any_size(run)
        try:
            odd = subject.run_in(images(33, scale=3), folder)
        except RecipeError as error:
            raise NotApplicable(f"it refuses 33 x 33 pixels: {said(error)}") from None
        _require_finite(iterate(odd), "on images of 33 x 33 pixels")


def agrees_in_bfloat16(subject: Subject) -> None:
    """Networks that run in bfloat16 give nearly the same losses, in float32."""
    with subject.in_a_folder() as folder:
        exact = iterate(subject.run(folder))
        half = torch.autocast("cpu", torch.bfloat16)
        with patch("ganlab.run.autocast", lambda precision, device: half):
            rounded = iterate(subject.run(folder))
    for name, value in exact.items():
        near = 10 * NEAR if name.endswith("logits") else NEAR  # mean logits lie around 0
        if name not in rounded or rounded[name].dtype not in (torch.float32, torch.float64):
            found = rounded[name].dtype if name in rounded else "missing"
            raise Broken(f"{name} is {found} when networks run in bfloat16; convert what networks "
                         "return by .float()")  # fmt: skip
        if not torch.isclose(rounded[name].double(), value.double(), ROUNDING, near):
            raise Broken(
                f"{name} is {value:.4g} in float32 and {rounded[name]:.4g} with networks in "
                "bfloat16; compute sums and small differences in float32"
            )


def takes_a_batch_in_parts(subject: Subject) -> None:
    """A batch of two equal halves gives the same losses whole and in two parts."""
    with subject.in_a_folder() as folder:
        first = subject.run(folder)
        first.streams.moment("parts")
        half = first.hook.sample_batch(batch_size=2, device=CPU)
        pair = Batch(*(torch.cat([part, part]) for part in (half.real, half.condition)))

        def losses(accumulate: int, iteration: int = 0) -> dict[str, Tensor]:
            run = subject.run(folder, batch_size=4, accumulate=accumulate)
            run.iteration, run.given = iteration, [pair] * 2
            return iterate(run)

        whole, parts, later = losses(1), losses(2), losses(1, iteration=1)
    # other random numbers, or another iteration, change the loss: then only its size is compared
    mine = own_terms(subject)
    fixed = all(torch.isclose(whole[n], later.get(n, whole[n]), EXACT, 1e-6) for n in whole)
    for name in whole if fixed else whole.keys() & mine:
        near = EXACT if fixed else LOOSE
        if not torch.isclose(parts[name].double(), whole[name].double(), near, 1e-4):
            raise Broken(
                f"{name} is {whole[name]:.4g} on a batch of four, and {parts[name]:.4g} on its two "
                "equal halves; take the mean over the images, not the sum"
            )


def is_the_same_by_two_processes(subject: Subject) -> None:
    """A run of two processes, each with half of the batch, is the run of one process."""
    with subject.in_a_folder() as folder:
        compare_with_two(subject, folder)


def is_replayed_alike(subject: Subject) -> None:
    """A captured step computes what the step as written computes."""
    if not subject.kind.capturable:
        raise NotApplicable("it says capturable = False")
    count = WARM_UPS + 4
    lines: list[list[dict[str, Tensor]]] = []
    with subject.in_a_folder() as folder:
        for execution in (None, Graphs(CpuRecorder())):
            run = subject.run(folder, watch_every=0)
            run.notes.clear()
            run.execution = execution or run.execution
            lines.append([])
            with run.execution.running():
                for run.iteration in range(count):
                    lines[-1].append({n: v.detach().clone() for n, v in iterate(run).items()})
    for note in run.notes:
        own_optimizer = "make_optimizer" in subject.answers and "synchronizing" in note
        if own_optimizer or any(words in note for words in _NOT_FOR_THE_RECORDER):
            raise NotApplicable(note)
        raise Broken(f"{note}; say capturable = False if that must be so")
    for plain, replayed in zip(*lines, strict=True):
        _require_same(replayed, plain, "in a captured step", "change tensors in place only")


_NOT_FOR_THE_RECORDER = ("has no capturable form", "invalid python storage")
"""In notes on optimizers that torch cannot capture, and on torch.func, which hides its tensors."""


def says_where_it_does_not_fit(subject: Subject) -> None:
    """In a game on points it trains, or the recipe is refused by a message."""
    with subject.in_a_folder() as folder:
        try:
            run = subject.run_in(points(), folder)
        except RecipeError:
            return
        _require_finite(iterate(run), "in a game on points")


def passes_check(subject: Subject) -> None:
    """`ganlab check` finds nothing wrong."""
    with subject.in_a_folder() as folder:
        subject.run(folder)
        *lines, last = check_recipe(folder / "recipe.toml", [], "cpu")
    if dropped := [line for line in lines if "throws away" in line]:
        raise Broken(dropped[0].removeprefix("warning: "))
    assert last == "ok"


def has_the_known_values(subject: Subject) -> None:
    """What it computes on known inputs has the values that its author states."""
    if not subject.known:
        raise NotApplicable("no value is known: see `known` of check_plugin")
    for what, (compute, expected) in subject.known.items():
        found = float(compute(subject.made()))
        if abs(found - expected) > 1e-5 * max(1, abs(expected)):
            raise Broken(f"{what} is {found:.8g}, not {expected:.8g}")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the contract. Called with a plugin, it raises `Broken` when it does not hold."""

    keep: Callable[[Subject], None]
    slow: bool = False
    """Whether it takes about a second."""

    @property
    def name(self) -> str:
        return self.keep.__name__

    @property
    def sentence(self) -> str:
        """What the plugin must do."""
        return inspect.getdoc(self.keep) or ""

    def __call__(self, plugin: Any) -> None:
        """Check a plugin: a class, a plugin with its options, a name or a `Subject`.

        :raises Broken: when it breaks the rule.
        :raises NotApplicable: when the rule is not about it.
        """
        subject = Subject.of(plugin)
        try:
            self.keep(subject)
        except (Broken, NotApplicable):
            raise
        except GanlabError as error:
            raise Broken(said(error)) from error
        except BaseException as error:  # the code is the author's; SystemExit too
            if is_interruption(error):
                raise
            place = line_in(error, subject.kind)
            raise Broken(f"{described(error)}{f' ({place})' if place else ''}") from error


RULES = (
    Rule(says_what_it_is),
    Rule(names_its_source),
    Rule(describes_its_options),
    Rule(is_made_from_its_options),
    Rule(fits_the_hooks),
    Rule(keeps_its_state_whole),
    Rule(trains_its_own_network),
    Rule(repeats_and_resumes),
    Rule(takes_a_batch_of_one),
    Rule(takes_odd_sizes),
    Rule(agrees_in_bfloat16),
    Rule(takes_a_batch_in_parts),
    Rule(is_the_same_by_two_processes),
    Rule(is_replayed_alike, slow=True),
    Rule(says_where_it_does_not_fit),
    Rule(passes_check, slow=True),
    Rule(has_the_known_values),
)
"""The contract, in the order in which it is checked."""


def own_terms(subject: Subject) -> set[str]:
    """The log names under which a plugin may have a loss."""
    terms = {f"D/{subject.name}", f"G/{subject.name}"}
    if "discriminator_loss" in subject.answers:
        terms |= {"D/adversarial", "G/adversarial"}
    return terms


def _doc(code: Any) -> str:
    return inspect.getdoc(code) or ""


def _evaluated(run: Run) -> dict[str, Tensor]:
    generator = run.hook.evaluation_generator(generator=run.G)
    with eval_mode(generator):
        figures = evaluate_generator(run, generator).figures
    return {name: torch.tensor(value) for name, value in figures.items()}


def _require_finite(losses: dict[str, Tensor], where: str) -> None:
    if bad := [name for name, value in losses.items() if not value.isfinite()]:
        raise Broken(f"{', '.join(bad)} is not finite {where}")


def _require_same(
    found: dict[str, Tensor], expected: dict[str, Tensor], where: str, remedy: str
) -> None:
    for name in found.keys() | expected.keys():
        if name not in found or name not in expected:
            raise Broken(f"{name} is not logged {where} as it was before; {remedy}")
        if not torch.equal(found[name], expected[name]):
            raise Broken(
                f"{name} is {expected[name]:.8g} at first and {found[name]:.8g} {where}; {remedy}"
            )


def _require_any_size(run: Run) -> None:
    """A generator that is convolutional enlarges images of any size."""
    if any(isinstance(module, torch.nn.Flatten) for module in run.G.modules()):
        return
    with torch.no_grad():
        made = run.G.eval()(torch.rand(1, run.condition_shape[0], 13, 17))
    expected = (1, run.real_shape[0], 13 * run.scale, 17 * run.scale)
    if made.shape != expected:
        raise Broken(f"its generator makes {[*made.shape]} of 13 x 17 pixels, not {[*expected]}")
