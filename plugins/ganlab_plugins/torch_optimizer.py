"""The optimizers of torch.optim, by their names."""

import inspect
import json
from functools import reduce
from operator import or_
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch
from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from torch import Tensor, nn
from torch.optim import Optimizer

from ganlab import MayChange, Plugin, Run, did_you_mean, hookimpl, require_discriminator

# how a step is computed, which is chosen here; and the sign of a step, which is always downwards
_NOT_OPTIONS = ("self", "params", "foreach", "fused", "capturable", "differentiable", "maximize")
_FUSED = ("Adam", "AdamW", "SGD")  # with a fused kernel on CPU and CUDA
Options = dict[str, Any]
Changing = Annotated[Options, MayChange(only=("lr", "weight_decay"))]


class TorchOptimizer(Plugin):
    """An optimizer of torch.optim for each network, by its name (arXiv:1912.01703).

    The options are those of its class in torch, with the same names and defaults; `lr` is the
    learning rate. So `{ kind = "RMSprop", options = { lr = 5e-5 } }` is the optimizer of the first
    WGAN (arXiv:1701.07875). The fused kernel is used where there is one (Adam, AdamW, SGD).

    An optimizer that computes the loss several times in a step (LBFGS) or that needs sparse
    gradients (SparseAdam) is refused. Muon is refused for a network that has other parameters
    than matrices, such as convolutions and biases. Steps of some optimizers cannot be captured as
    a CUDA graph; the run names them.
    """

    kind: str = Field(examples=["RMSprop"])
    """Name of the class in torch.optim, such as "AdamW", "RMSprop" or "NAdam"."""

    options: Changing = Field(default_factory=dict)
    """Options of both optimizers, such as `{ lr = 1e-4, weight_decay = 0.01 }`."""

    generator: Changing = Field(default_factory=dict)
    """Options of the generator's optimizer, in addition to `options` or instead of them."""

    discriminator: Changing = Field(default_factory=dict)
    """Options of the discriminator's optimizer, in addition to `options` or instead of them."""

    @field_validator("kind")
    @classmethod
    def _is_an_optimizer(cls, kind: str) -> str:
        classes = {n: c for n, c in vars(torch.optim).items() if isinstance(c, type)}
        known = {n: c for n, c in classes.items() if issubclass(c, Optimizer) and c != Optimizer}
        if kind not in known:
            near = did_you_mean(kind, known) or f", one of {', '.join(sorted(known))}"
            raise ValueError(f"must be the name of an optimizer in torch.optim{near}")
        closure = inspect.signature(known[kind].step).parameters["closure"]
        if closure.default is inspect.Parameter.empty:
            raise ValueError("computes the loss several times in a step; choose another optimizer")
        if kind == "SparseAdam":
            raise ValueError("needs sparse gradients, but these are dense; use Adam")
        return kind

    @field_validator("options", "generator", "discriminator")
    @classmethod
    def _are_known(cls, options: Options, info: ValidationInfo) -> Options:
        kind = info.data.get("kind")
        return _checked(kind, options) if kind else options

    @model_validator(mode="after")
    def _are_accepted(self) -> "TorchOptimizer":
        """Construct both, because only torch knows the range of each option."""
        for role in ("generator", "discriminator"):
            try:
                self._optimizer([nn.Parameter(torch.zeros(1, 1))], role)
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"{self.kind} refuses the options: {error}") from None
        return self

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        if self.discriminator:
            require_discriminator(self, run, "discriminator")

    @hookimpl
    def make_optimizer(self, module: nn.Module, role: str) -> Optimizer:
        try:
            return self._optimizer(list(module.parameters()), role)
        except ValueError as error:
            raise self.error(
                f"{self.kind} cannot train the {role}: {error}; choose another kind", "kind"
            ) from None

    def _optimizer(self, parameters: list[nn.Parameter], role: str) -> Optimizer:
        options = self.options | (self.generator if role == "generator" else self.discriminator)
        if self.kind in _FUSED and all(p.device.type in ("cpu", "cuda") for p in parameters):
            options["fused"] = True
        optimizer: Optimizer = getattr(torch.optim, self.kind)(parameters, **options)
        return optimizer


def _checked(kind: str, options: Options) -> Options:
    """Check names and types against the constructor of the optimizer.

    :returns: the options, with a tuple in the place of a list.
    :raises ValidationError: for the first option that is wrong.
    """
    constructor = getattr(torch.optim, kind).__init__
    hints = get_type_hints(constructor)
    names = [name for name in inspect.signature(constructor).parameters if name not in _NOT_OPTIONS]
    for name, value in options.items():
        if name not in names:
            near = did_you_mean(name, names) or f"; its options are {', '.join(names)}"
            fault = f"no option of {kind} has this name{near}"
            if name in _NOT_OPTIONS:
                fault = "it is chosen by ganlab; leave it out"
            raise _error(name, value, fault)
    fields: dict[str, Any] = {name: (_without_tensors(hints[name]), ...) for name in options}
    model = create_model(kind, __config__=ConfigDict(strict=True, allow_inf_nan=False), **fields)
    return dict(model.model_validate_json(json.dumps(options)))


def _error(name: str, value: Any, fault: str) -> ValidationError:
    kind = PydanticCustomError("option", fault)
    details = InitErrorDetails(type=kind, loc=(name,), input=value)
    return ValidationError.from_exception_data("options", [details])


def _without_tensors(hint: Any) -> Any:
    """The type of an option as a recipe can write it: `float` for `float | Tensor`."""
    inner = tuple(_without_tensors(part) for part in get_args(hint) if part is not Tensor)
    if not inner:
        return hint
    return tuple[inner] if get_origin(hint) is tuple else reduce(or_, inner)  # type: ignore[valid-type]
