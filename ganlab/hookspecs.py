"""THE CONTRACT: every hook a plugin may implement. Read this first.

Three kinds of hook.

- **Build** hooks run once, before training.
- **Tensor** hooks are pure: tensors in, tensors out; no `.item()`, no printing, no branch on a
  value, no Python randomness (draw from `self.rng`), shapes that do not change. The engine may
  compile or capture them.
- **Event** hooks are free Python and get the `Run`; they are never inside a captured region.

Four ways in which the answers of several plugins combine.

- **one**: exactly one plugin answers; the loader refuses none or two.
- **chained**: implemented with `@hookimpl(wrapper=True)`: `images = yield` receives what the
  plugins listed earlier in the recipe made, and what you return goes on to the next. Recipe order
  is the order of application.
- **collected**: every plugin answers, the dicts are merged; no order may be relied on.
- **first**: the plugins are asked in turn until one returns something other than None; the engine's
  own implementation is asked last.

A hookimpl names just the arguments that it wants, without default values. Images are float
tensors [N, C, H, W] in 0..1 everywhere; logits are what the discriminator returns, [N, 1, h, w]
from a patch discriminator and [N, 1] from one that sees the whole image.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ganlab.plugin import Batch, hookspec
from ganlab.monitoring.verdicts import History, Verdict

if TYPE_CHECKING:
    from ganlab.engine import Run
    from ganlab.evaluation.scores import Judged

Shape = tuple[int, ...]


# --- build ---------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def make_generator(condition_shape: Shape, real_shape: Shape) -> nn.Module:  # type: ignore[empty-body]
    """Build the generator. One, required.

    Torch's random numbers are set by the engine, so the initial weights depend on the seed alone.

    :param condition_shape: of one sample of what it sees, (C, h, w).
    :param real_shape: of one sample of what it must make, (C, H, W); the SR scale is H / h.
    :returns: module from a batch of conditions to a batch of images; it does not clamp them.
    """


@hookspec
def make_discriminator(condition_shape: Shape, real_shape: Shape) -> nn.Module:  # type: ignore[empty-body]
    """Build a discriminator. One, or as many as the recipe's `num_discriminators`.

    With several, each loss and penalty that asks a discriminator is the mean over them. A wrapper
    receives and returns the list of modules, as `spectral_norm` does.

    :param condition_shape: of one sample of the condition.
    :param real_shape: of one sample of what it is shown: a real image after `augment`.
    :returns: module from a batch of images to logits.
    """


@hookspec(firstresult=True)
def make_optimizer(module: nn.Module, role: str) -> torch.optim.Optimizer:  # type: ignore[empty-body]
    """Build the optimizer of one network. First; the engine's own is Adam(1e-4, betas (0.9, 0.99)).

    :param role: "generator" or "discriminator".
    """


@hookspec
def evaluation_images() -> dict[str, Tensor]:  # type: ignore[empty-body]
    """Held-out images, never trained on. Collected; called once, at assembly.

    :returns: name -> uint8 [3, H, W], or [1, H, W] for a grey one, on the CPU, any size.
    """


# --- tensor --------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def sample_real(batch_size: int, device: torch.device) -> Tensor:  # type: ignore[empty-body]
    """Draw real samples: the data source. One, required.

    Called before every D step and every G step (once an iteration with `first = "generator"`), and
    once with `batch_size` 2 at assembly. Which samples come must depend on `self.host_rng` or
    `self.rng` alone.

    :returns: [batch_size, ...] on `device`, floating point; images are HR crops in 0..1.
    """


@hookspec(firstresult=True)
def degrade(images: Tensor) -> Tensor:  # type: ignore[empty-body]
    """Make what the generator sees. Chained; begins with the images themselves.

    Blur, bicubic, noise, JPEG in recipe order. Also called on whole held-out images.

    :param images: [N, C, H, W] in 0..1, H and W divisible by the scale.
    :returns: the condition, [N, C, h, w] in 0..1.
    """


@hookspec(firstresult=True)
def sample_batch(batch_size: int, device: torch.device) -> Batch:  # type: ignore[empty-body]
    """Make the batch of one step. First; the engine's own is `sample_real`, then `degrade`."""


@hookspec(firstresult=True)
def augment(images: Tensor, condition: Tensor) -> Tensor:  # type: ignore[empty-body]
    """Change what the discriminator sees, real and fake alike. Chained.

    Called in the D step (on real, then on fake) and in the G step (on fake, through which the
    generator's gradient must pass; on real too when a generator loss reads the real logits). A
    plugin that answers alike in both steps says `shares_forward = True`.

    :returns: images for D. A plugin may change their number of channels: `make_discriminator`
        is told the shape after all of them.
    """


@hookspec(firstresult=True)
def labels(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[empty-body]
    """The targets of the discriminator. Chained; begins with ones for real, zeros for fake.

    D step. A recipe whose discriminator loss reads no labels may not have such a plugin.

    :returns: (real_label, fake_label), shaped like the logits.
    """


@hookspec(firstresult=True)
def discriminator_loss(  # type: ignore[empty-body]
    real_logits: Tensor, fake_logits: Tensor, real_label: Tensor, fake_label: Tensor
) -> Tensor:
    """The adversarial loss of the discriminator, to minimise. One, required when `d_steps` > 0.

    Logits are at least float32. Logged as `D/adversarial`.

    :returns: 0-d tensor.
    """


@hookspec
def penalty(  # type: ignore[empty-body]
    discriminator: nn.Module,
    real: Tensor,
    fake: Tensor,
    condition: Tensor,
    real_logits: Tensor,
    fake_logits: Tensor,
) -> dict[str, Tensor]:
    """Terms to add to the discriminator's loss. Collected, summed.

    D step, in at least float32, outside autocast. `discriminator` is the uncompiled module.

    :param real, fake: what D was shown, so after `augment`; neither requires a gradient.
    :param real_logits, fake_logits: what it answered, with their gradient to D.
    :returns: log name ("D/gradient_penalty") -> 0-d tensor, already weighted.
    """


@hookspec
def generator_loss(  # type: ignore[empty-body]
    fake_logits: Tensor, real_logits: Tensor, fake: Tensor, real: Tensor, condition: Tensor
) -> dict[str, Tensor]:
    """Terms of the generator's loss. Collected, summed.

    G step. A plugin that names `fake_logits` or `real_logits` is adversarial: it is left out when
    there is no discriminator or during pretraining. D is run on the real images only when some
    plugin names `real_logits`, and these carry no gradient to G.

    :param fake: G's output, not augmented, with its gradient.
    :returns: log name ("G/pixel_loss") -> 0-d tensor, already weighted.
    """


# --- event ---------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def discriminator_step(run: "Run", batch: Batch) -> dict[str, Tensor]:  # type: ignore[empty-body]
    """One update of the discriminator, `d_steps` times an iteration. First; the engine's is last.

    A plugin may wrap it, or pre-empt it by returning a dict (`{}` skips the update).

    :returns: log name -> 0-d tensor, detached, still on the device.
    """


@hookspec(firstresult=True)
def generator_step(run: "Run", batch: Batch) -> dict[str, Tensor]:  # type: ignore[empty-body]
    """One update of the generator, `g_steps` times an iteration. First; the engine's is last."""


@hookspec
def run_start(run: "Run") -> None:
    """All is built, nothing is trained or loaded yet. All plugins.

    The place to make running state, and to check what two plugins ask of each other: raise
    `self.error(fault, option)`.
    """


@hookspec
def iteration_start(run: "Run") -> None:
    """Before the steps of iteration `run.iteration`, counted from 0. All plugins."""


@hookspec
def iteration_end(run: "Run", losses: dict[str, Tensor]) -> None:
    """After the steps. All plugins.

    :param losses: this iteration's log values, each the mean over its steps; on the device.
    """


@hookspec
def run_end(run: "Run") -> None:
    """After the last iteration, or when stopped. All plugins."""


@hookspec(firstresult=True)
def evaluation_generator(generator: nn.Module) -> nn.Module:  # type: ignore[empty-body]
    """Choose the weights that are judged and kept. Chained; begins with G itself. EMA uses it."""


@hookspec
def score_images(  # type: ignore[empty-body]
    run: "Run", sr: Tensor, hr: Tensor, lr: Tensor
) -> dict[str, float | Tensor]:
    """Score one image against its reference, beside PSNR and SSIM. Collected.

    Called for every held-out image, for the generator's answer and once for bicubic's; `ganlab
    eval` calls it too. Without gradients.

    :param sr, hr: uint8 [1, C, H, W] on the run's device, borders not cut; C is 1 for grey.
    :param lr: uint8 [1, 3, h, w], what the generator saw.
    :returns: name -> number, or a 0-d tensor: one on the device is brought from there together
        with the others' and need not be waited for. The mean over the images is written to
        stats.jsonl.
    """


@hookspec
def evaluate(run: "Run", generator: nn.Module, judged: "list[Judged]") -> dict[str, float]:  # type: ignore[empty-body]
    """Judge the generator as a whole. Collected; every `evaluate_every` iterations and at the end.

    `ganlab eval` asks those that name `judged`, in a run that never started: `run.G`, `run.D` and
    `run.held_out` are not there then.

    :param generator: from `evaluation_generator`, in eval mode, without gradients.
    :param judged: the held-out images with what was made of them (`.name`, `.hr`, `.lr`, `.sr`,
        `.bicubic`: uint8 [C, H, W] on the CPU; `.scores`); empty where there are none.
    :returns: name -> number, written to stats.jsonl.
    """


@hookspec
def verdicts(history: History) -> list[Verdict]:  # type: ignore[empty-body]
    """Say whether training fails. Collected; at every evaluation and checkpoint.

    The engine's own rules are asked as well. A verdict is told once, by its name; what happens
    then is the recipe's `on_verdict`.

    :param history: what `watch_every` and the evaluations have logged so far, plain numbers.
    :returns: what fails now; empty when nothing does.
    """
