"""What each hook must answer, so that a wrong answer is told beside the plugin that gave it."""

from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ganlab.monitoring.verdicts import Verdict


def _is_losses(answer: Any) -> bool:
    return isinstance(answer, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in answer.items()
    )


def _is_figures(answer: Any) -> bool:
    return isinstance(answer, dict) and all(
        isinstance(name, str)
        and (isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1))
        for name, value in answer.items()
    )


def _is_pair(answer: Any) -> bool:
    return isinstance(answer, tuple) and [type(part) for part in answer] == [Tensor, Tensor]


_DICT = (lambda answer: isinstance(answer, dict), "a dict: name -> loss")
_FIGURES = (_is_figures, "a dict: name -> number")
_LOSSES = (_is_losses, "a dict: name -> tensor of one number")
_TENSOR = (lambda answer: isinstance(answer, Tensor), "a tensor")
_WANTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "evaluate": _FIGURES,
    "score_images": _FIGURES,
    "generator_loss": _DICT,
    "penalty": _DICT,
    "gradients": _LOSSES,
    "discriminator_step": _LOSSES,
    "generator_step": _LOSSES,
    "degrade": _TENSOR,
    "augment": _TENSOR,
    "labels": (_is_pair, "a tuple of two tensors"),
    "verdicts": (
        lambda answer: isinstance(answer, list) and all(isinstance(v, Verdict) for v in answer),
        "a list of Verdict",
    ),
    "evaluation_generator": (lambda a: isinstance(a, torch.nn.Module), "a module"),
}


def wrong_answer(hook: str, answer: Any, wraps: bool) -> str:
    """A clause on an answer that no other code can use; "" when it is right.

    A plain implementation may answer None: it is then left out.
    """
    fits, wanted = _WANTED.get(hook, (None, ""))
    if fits is None or fits(answer) or (answer is None and not wraps):
        return ""
    return f"returns {_shown(answer)}, not {wanted}"


def _shown(answer: Any) -> str:
    if answer is None:
        return "None"
    if isinstance(answer, dict):
        kinds = ", ".join(f"{name!r}: {type(value).__name__}" for name, value in answer.items())
        return f"{{{kinds}}}"
    return f"a {type(answer).__name__}"
