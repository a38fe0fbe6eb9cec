"""The invariants of a step, measured at every hook call of one real iteration.

What changes between two points in time is charged to the hook call that is at work: the innermost
one. So a message names the plugin whose code made the change, not the one that suffers from it.
"""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ganlab.checking.answers import wrong_answer
from ganlab.checking.chains import Call
from ganlab.checking.rehearsal import same
from ganlab.checking.state import State, owned_tensors, torch_settings
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.monitoring.calls import Watch, is_finite, tensors, watching
from ganlab.monitoring.invariants import steps_watched
from ganlab.run import Eager, Observer, Run, discriminators
from ganlab.toolbox.spectral import spectral_norm_faults, spectrally_normed

STEPS = {"discriminator_step": "D", "generator_step": "G"}
BETWEEN = ("iteration_start", "iteration_end")
EVENTS = (*STEPS, *BETWEEN)
"""Event hooks of an iteration. All others may change nothing: tensor hooks and evaluations."""
MAKING = ("sample_real", "sample_batch", "degrade", "augment", "labels", "discriminator_loss")
"""Hooks whose tensors go into a loss; they must be finite when all that was given is."""
EVALUATING = ("evaluate", "score_images", "verdicts")
ENGINE = "engine"


def iterate_watched(
    run: Run, observer: Observer | None = None
) -> tuple[dict[str, Tensor], "Guard"]:
    """Run one iteration and refuse what breaks an invariant of its steps.

    Steps are carried out as they are written, since a captured step calls no hook.

    :returns: the logged values, and the guard with the record of all calls.
    :raises RecipeError: at the first break; it names the plugin, the invariant and the remedy.
    """
    guard = Guard(run)
    claims = {plugin: plugin.invariants(run) for plugin in run.recipe.plugins.values()}
    for claim in claims.values():
        next(claim)
    with guard.watching():
        losses = iterate(run, observer)
    for plugin, claim in claims.items():
        for sentence in _ending(claim):
            raise plugin.error(f"{sentence}{guard.who_moved_networks()}")
    for fault in spectral_norm_faults(p for D in discriminators(run) for p in spectrally_normed(D)):
        raise RecipeError(f"{run.recipe.file}: {fault}{guard.who_moved_networks()}")
    return losses, guard


def evaluation_watched(run: Run) -> AbstractContextManager[None]:
    """Context of an evaluation; a plugin that changes there what is trained is refused.

    :raises RecipeError: at the first such change; it names the plugin, the hook and the remedy.
    """
    return Guard(run).watching()


def _ending(claim: Generator[None, None, list[str]]) -> list[str]:
    try:
        next(claim)
    except StopIteration as done:
        return done.value or []
    raise RuntimeError("invariants() yields more than once")


class Guard:
    """Watches one iteration, and raises RecipeError at the call that breaks an invariant."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.calls: list[Call] = []
        """Every call, in the order in which calls ended."""
        self.movers: list[tuple[str, Call]] = []
        """Which calls changed which network between the steps."""
        self.moved: dict[str, bool] = {}
        """Of each network that a step was taken for: whether a step moved its weights."""
        self._open: list[Call] = []
        self._engine = Call("", ENGINE, False)
        self._role = ""
        self._steps: list[Call] = []
        self._last_mode: Call | None = None
        self._batch: list[Tensor] = []
        self._watched: list[tuple[Tensor, Tensor]] = []
        self._owned = owned_tensors(run)
        self._state = self._measured()
        self._step_state = self._state

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Context of the iteration."""
        run, before = self.run, self.run.execution
        with ExitStack() as stack:
            stack.callback(setattr, run, "execution", before)
            run.execution = Eager()
            for role, optimizer in run.optimizers.items():
                stack.enter_context(self._watch_optimizer(role, optimizer))
            with watching(run.manager, self._begin):
                yield
            self.charge()

    def who_moved_networks(self) -> str:
        """A clause that names the plugins that changed a network between the steps."""
        names = [f"{call.plugin} changes {role} in {call.hook}" for role, call in self.movers]
        return f" ({', '.join(dict.fromkeys(names))})" if names else ""

    # --- the calls

    def _begin(self, hook: str, plugin: str, wraps: bool) -> "_Watched":
        return _Watched(self, hook, plugin, wraps)

    def enter(self, call: Call) -> None:
        self.charge()
        if not self._open:
            self._enter_step(call.hook)
        call.role = self._role
        self._open.append(call)

    def leave(self) -> None:
        self.charge()
        self._open.pop()

    def _enter_step(self, hook: str) -> None:
        """Notice that a step begins or ends, by the hook that is called outside of all others."""
        role = STEPS.get(hook, "" if hook in (*BETWEEN, "sample_batch") else self._role)
        if role != self._role:
            self._steps.clear()
            self._step_state = self._state
            # from now on no call may change the batch
            self._watched = [(t, t.clone()) for t in self._batch] if role else []
        self._role = role

    def end(self, call: Call) -> None:
        """Record a call that has ended."""
        call.weights = str([self._state.weights, self._state.settings])
        self.calls.append(call)
        if call.hook == "sample_batch" and not self._open:
            self._batch = tensors(call.answer)

    def _measured(self) -> State:
        return State.of(self.run, self._owned)

    # --- what changed

    def charge(self) -> None:
        """Compare the state with the last one, and check what the innermost call has changed."""
        call = self._open[-1] if self._open else self._engine
        before, self._state = self._state, self._measured()
        now = self._state
        if now.seed != before.seed and call.plugin != ENGINE and call.hook not in EVALUATING:
            raise self.broken(
                call,
                "seeds torch's random generator",
                "every draw after it would repeat; draw from self.rng instead",
            )
        if now.modes != before.modes:
            self._last_mode = call
        for role in now.weights:
            evaluating = call.hook in EVALUATING and now.buffers[role] != before.buffers[role]
            if now.weights[role] != before.weights[role] or evaluating:
                self._check_moved(role, call)
        if call.hook not in EVENTS:
            self._check_tensor_hook(call, before, now)
        self._check_owners(call, before, now)
        for tensor, copy in self._watched:
            if not same(tensor, copy):
                raise self.broken(
                    call,
                    "changes the batch in place",
                    "every later reader would see other images; make a new tensor",
                )

    def _check_moved(self, role: str, call: Call) -> None:
        if call.hook in BETWEEN:
            self.movers.append((role, call))
        elif STEPS.get(call.hook) != role:
            where = f"in the step of {call.role}" if call.role else "outside of its step"
            raise self.broken(
                call,
                f"changes the weights of {role} {where}",
                f"only {'discriminator' if role == 'D' else 'generator'}_step moves {role}; a "
                "change of weights belongs there, or into iteration_end",
            )

    def _check_tensor_hook(self, call: Call, before: State, now: State) -> None:
        """A tensor hook is pure: it leaves no gradients, flags, modes or settings behind."""
        if call.plugin == ENGINE:
            return
        if now.settings != before.settings:
            raise self.broken(
                call,
                "changes the settings of an optimizer",
                "training would depend on when it is called; do that in iteration_start",
            )
        if now.gradients != before.gradients and call.hook != "gradients":
            raise self.broken(
                call,
                "leaves gradients on the weights",
                "they would be added to the step's; use torch.autograd.grad, not backward()",
            )
        if now.trainable != before.trainable:
            raise self.broken(
                call,
                "changes which weights require a gradient",
                "restore requires_grad before it returns, or detach its tensors instead",
            )
        if now.modes != before.modes:
            raise self.broken(
                call,
                "changes the training mode of a network",
                "restore it by train(mode) before it returns",
            )

    def _check_owners(self, call: Call, before: State, now: State) -> None:
        for owner, state in now.plugins.items():
            if owner != call.plugin and state != before.plugins[owner] and call.plugin != ENGINE:
                raise self.broken(
                    call,
                    f"changes the state of {owner}",
                    f"only {owner} may change it; work on a copy",
                )

    def check_arguments(self, call: Call, copies: dict[str, list[Tensor]]) -> None:
        """Refuse a call that changed what it was given."""
        for name, copy in copies.items():
            if call.plugin != ENGINE and not same(tensors(call.arguments[name]), copy):
                raise self.broken(
                    call,
                    f"changes its argument {name} in place",
                    "other readers would see other numbers; make a new tensor",
                )

    def check_torch(self, call: Call, before: dict[str, Any]) -> None:
        """Refuse a call that leaves settings of torch changed, which hold for all code."""
        for name, value in torch_settings().items():
            if value != before[name] and call.plugin != ENGINE:
                torch.set_grad_enabled(before["grad mode"])
                torch.set_default_dtype(before["default dtype"])
                torch.set_num_threads(before["number of threads"])
                torch.use_deterministic_algorithms(before["deterministic algorithms"])
                raise self.broken(
                    call,
                    f"leaves torch's {name} at {value}",
                    f"it was {before[name]}; restore it before it returns",
                )

    def check_answer(self, call: Call) -> None:
        """Refuse an answer of a wrong type, before other code fails on it."""
        if call.plugin == ENGINE:
            return
        fault = wrong_answer(call.hook, call.answer, call.wraps)
        given = [call.arguments, call.received]
        if call.hook in MAKING and not fault and not is_finite(call.answer) and is_finite(given):
            fault = "gives numbers that are not finite"
        if call.hook == "gradients":
            networks = self.run.networks.values()  # the plugin need not ask for the module
            left = [p.grad for net in networks for p in net.parameters() if p.grad is not None]
            fault = fault or ("" if is_finite(left) else "makes a gradient that is not finite")
        if fault:
            raise self.run.recipe.plugins[call.plugin].error(f"its {call.hook} {fault}")

    # --- optimizer steps

    def _watch_optimizer(self, role: str, optimizer: Optimizer) -> AbstractContextManager[None]:
        def before() -> None:
            self.charge()
            self._check_modes()
            self._check_count(role)

        def after() -> None:
            before, self._state = self._state, self._measured()  # what it changes is planned
            moved = self._state.weights[role] != before.weights[role]
            self.moved[role] = self.moved.get(role, False) or moved

        return steps_watched(optimizer, before, after)

    def _check_modes(self) -> None:
        """Both networks are in training mode when a step is taken, and as when it began."""
        for role, network in self.run.networks.items():
            if not network.training or self._state.modes[role] != self._step_state.modes[role]:
                raise self.broken(
                    self._last_mode or self._engine,
                    f"leaves {role} in eval mode in the step of {self._role}",
                    f"a step needs training mode; call train() on {role} afterwards",
                )

    def _check_count(self, role: str) -> None:
        """One optimizer step for each step of a network, and those of plugins with extra_steps."""
        caller = self._open[-1] if self._open else self._engine
        plugin = self.run.recipe.plugins.get(caller.plugin)
        if role != self._role:
            raise self.broken(
                caller,
                f"takes an optimizer step of {role} {self._place()}",
                f"a step of {role} belongs into its own hook",
            )
        if plugin and plugin.extra_steps:
            return
        self._steps.append(caller)
        if len(self._steps) > 1:
            wrapping = [step for step in self._steps if step.plugin != ENGINE]
            unplanned = [step for step in wrapping if step.wraps or step.hook not in STEPS]
            hook = "discriminator_step" if role == "D" else "generator_step"
            raise self.broken(
                (unplanned or wrapping or self._steps)[-1],
                f"takes one more optimizer step of {role} than planned in {hook}",
                f"set {role.lower()}_steps in the recipe for more steps; a plugin that takes steps "
                "of its own by design says extra_steps = True",
            )

    def _place(self) -> str:
        return f"in the step of {self._role}" if self._role else "outside of the steps"

    def broken(self, call: Call, fault: str, remedy: str) -> RecipeError:
        """The error for a broken invariant; it names the plugin and its hook."""
        plugin = self.run.recipe.plugins.get(call.plugin)
        if plugin:
            return plugin.error(f"its {call.hook} {fault}: {remedy}")
        return RecipeError(f"{self.run.recipe.file}: the engine or a network {fault}: {remedy}")


class _Watched(Watch):
    """Watches one call for a guard."""

    def __init__(self, guard: Guard, hook: str, plugin: str, wraps: bool) -> None:
        self._guard, self._call = guard, Call(hook, plugin, wraps)
        self._copies: dict[str, list[Tensor]] = {}
        self._settings: dict[str, Any] = {}

    def __enter__(self) -> None:
        self._guard.enter(self._call)

    def __exit__(self, *error: object) -> None:
        if error[0] in (None, StopIteration):  # so the second part of a wrapper ends
            self._guard.leave()
            self._guard.check_arguments(self._call, self._copies)

    def given(self, arguments: dict[str, Any]) -> None:
        self._call.arguments = arguments
        self._copies = {name: _copied(value) for name, value in arguments.items()}
        self._settings = torch_settings()

    def received(self, answer: Any) -> None:
        self._call.received = answer

    def answered(self, answer: Any) -> None:
        self._call.answer = answer
        self._guard.check_torch(self._call, self._settings)
        self._guard.check_answer(self._call)
        self._guard.end(self._call)


def _copied(value: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors(value)]
