"""The engine's own answers to hooks: when no plugin answers, and at the start of a chain."""

import weakref

import torch
from torch import Tensor, nn

from ganlab.monitoring.verdicts import History, Verdict, find_verdicts
from ganlab.plugin import Batch, Losses, hookimpl
from ganlab.run import Run


class Defaults:
    """The engine's own hook implementations, except the two steps. They are asked last."""

    def __init__(self, run: Run) -> None:
        self._run = weakref.proxy(run)  # else a finished run would keep its memory

    @hookimpl(trylast=True)
    def sample_batch(self, batch_size: int, device: torch.device) -> Batch:
        hook, dtype = self._run.hook, self._run.dtype
        real = hook.sample_real(batch_size=batch_size, device=device).to(dtype)
        with torch.no_grad():
            return Batch(real, hook.degrade(images=real).to(dtype))

    @hookimpl(trylast=True)
    def degrade(self, images: Tensor) -> Tensor:
        return images

    @hookimpl(trylast=True)
    def augment(self, images: Tensor) -> Tensor:
        return images

    @hookimpl(trylast=True)
    def labels(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(real_logits), torch.zeros_like(fake_logits)

    @hookimpl(trylast=True)
    def gradients(self) -> Losses:
        return {}

    @hookimpl(trylast=True)
    def evaluation_generator(self, generator: nn.Module) -> nn.Module:
        return generator

    @hookimpl(trylast=True)
    def verdicts(self, history: History) -> list[Verdict]:
        return list(find_verdicts(history))

    @hookimpl(trylast=True)
    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True)
