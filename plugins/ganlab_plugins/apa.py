"""Adaptive pseudo augmentation: some generated images are given to D as real ones."""

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

    In the D step each real image is replaced, with probability p, by the generator's image for
    the same condition, and treated as a real one. This deceives D, so that it does not overfit. p
    begins at 0 and is updated after every `every` D steps:

        p <- max(0, p + sign(r - target) * batch * every / (speed * 1000)),  r = mean sign(D(real))

    r is the mean over all logits of the real and pseudo-real images since the last update (the
    controller of StyleGAN2-ADA, arXiv:2006.06676). It is meaningful only where the sign of a logit
    is D's decision, as with bce and hinge; with wasserstein set `fixed_p`. p is logged as
    `D/<name>_p`.

    The paper's code inserts the images of the generator's last step, made from other inputs. Here
    condition and image must belong together, because a discriminator may see both. This costs one
    more forward pass of G in every D step. The plugin replaces the engine's D step, so no other
    plugin may replace it. Penalties see the pseudo-real images among the real ones; lazy penalties
    (`every` > 1) do not.
    """

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        for step in run.hook.discriminator_step.get_hookimpls():
            other, takes = step.plugin, not (step.wrapper or step.tryfirst)
            if isinstance(other, Plugin) and other is not self and takes:
                raise self.error(
                    f"replaces the discriminator's step, and so does {other.name}; remove one of "
                    "them"
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
