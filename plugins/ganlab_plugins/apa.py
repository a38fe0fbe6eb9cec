"""Adaptive pseudo augmentation: D is told that some of the generator's images are real."""

import torch

from ganlab import (
    AdaptiveProbability,
    Batch,
    Losses,
    Plugin,
    Run,
    Terms,
    discriminator_losses,
    hookimpl,
)


class APA(AdaptiveProbability):
    """Adaptive pseudo augmentation (Jiang et al. 2021, arXiv:2111.06849).

    In the D step each real image is replaced, with probability p, by what the generator makes of
    the same condition, and judged as a real one: D is deceived, so that it does not overfit. p
    begins at 0; after every `every` D steps it goes

        p <- max(0, p + sign(r - target) * batch * every / (speed * 1000)),  r = mean sign(D(real))

    with r over all logits of the real and pseudo-real images since the last time (the controller
    of StyleGAN2-ADA, arXiv:2006.06676). r means something only where the sign of a logit is D's
    verdict, as with bce and hinge; with wasserstein set `fixed_p`. p is logged as `D/<name>_p`.

    The paper's code replaces with the images of the generator's last step, made of other inputs.
    Here condition and image must belong together, for a discriminator may see both. Costs one
    more forward pass of G in every D step. It takes the engine's D step, so no other plugin may.
    Penalties see the pseudo-real images among the real ones, lazy ones (`every` > 1) do not.
    """

    @hookimpl
    def run_start(self, run: Run) -> None:
        super().run_start(run)
        for step in run.hook.discriminator_step.get_hookimpls():
            other, takes = step.plugin, not (step.wrapper or step.tryfirst)
            if isinstance(other, Plugin) and other is not self and takes:
                raise self.error(
                    f"takes the discriminator's step, and so does {other.name}; remove one of them"
                )

    @hookimpl
    def discriminator_step(self, run: Run, batch: Batch) -> Losses:
        losses = run.descend(run.D_optimizer, self._losses, batch)
        return self.steered(losses, len(batch.real))

    def _losses(self, run: Run, batch: Batch) -> Terms:
        return discriminator_losses(run, self._deceived(run, batch))

    def _deceived(self, run: Run, batch: Batch) -> Batch:
        with torch.no_grad(), run.autocast():
            fake = run.G(batch.condition).to(batch.real.dtype)
        p = self.p
        u = torch.rand(len(fake), generator=self.rng, dtype=p.dtype, device=p.device)
        chosen = (u < p).view(-1, *[1] * (fake.dim() - 1))
        return Batch(torch.where(chosen, fake, batch.real), batch.condition)
