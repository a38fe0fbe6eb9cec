"""THE CONTRACT: every hook a plugin may implement. Read this first.

There are three kinds of hook.

- **Build** hooks run once, before training.
- **Tensor** hooks are pure: tensors in, tensors out. No `.item()`, no printing, no branch on a
  value, no Python randomness (draw from `self.rng`), and shapes that do not change. The engine may
  compile or capture them.
- **Event** hooks are free Python and receive the `Run`. They are never compiled or captured.

The answers of several plugins combine in one of four ways.

- **one**: exactly one plugin answers. The loader refuses a recipe with none or with two.
- **chained**: implement it with `@hookimpl(wrapper=True)`. `images = yield` receives what the
  plugins listed earlier in the recipe made; what you return goes to the next. Recipe order is the
  order of application.
- **collected**: every plugin answers, and the dicts are merged. Do not rely on an order.
- **first**: the plugins are asked in turn until one returns something other than None. The engine's
  own implementation is asked last.

An implementation names only the arguments that it needs, without default values. Images are float
tensors [N, C, H, W] in 0..1 everywhere. Logits are what the discriminator returns: [N, 1, h, w]
from a patch discriminator, [N, 1] from one that sees the whole image.

Several processes may train one run. Each then calls the hooks with its rows of the batch, and the
engine averages gradients and logged values. Random draws whose first dimension is that of the
images are made for the whole batch, and each process keeps its rows. A plugin asks `self.world` for
the rest: `mean(value)` where a mean over the batch goes into something that is not linear or into
its state, `gather(rows)` where images are compared with each other. It communicates in no other
way, makes no draw for each image in a Python loop, and keeps no state of its own rows.

`real` and `fake` are the images before `augment`, with one exception: `penalty` receives them after
`augment`, as the discriminator sees them.
"""

import torch
from torch import Tensor, nn

from ganlab.monitoring.verdicts import History, Verdict
from ganlab.plugin import Batch, EvaluatedImage, Losses, hookspec
from ganlab.run import Run

Shape = tuple[int, ...]


# --- build ---------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def make_generator(condition_shape: Shape, real_shape: Shape) -> nn.Module:  # type: ignore[empty-body]
    """Build the generator. One, required.

    The engine seeds torch before the call, so the initial weights depend on the seed alone.

    :param condition_shape: of one sample that the generator sees, (C, h, w).
    :param real_shape: of one sample that it must make, (C, H, W). The SR scale is H / h.
    :returns: module from a batch of conditions to a batch of images. It does not clamp them.
    """


@hookspec
def make_discriminator(condition_shape: Shape, real_shape: Shape) -> nn.Module:  # type: ignore[empty-body]
    """Build a discriminator. One, or as many as the recipe's `num_discriminators`.

    With several, each loss and penalty that uses a discriminator is the mean over them. A wrapper
    receives and returns the list of modules, as `spectral_norm` does.

    :param condition_shape: of one sample of the condition.
    :param real_shape: of one sample that the discriminator sees: a real image after `augment`.
    :returns: module from a batch of images to logits.
    """


@hookspec(firstresult=True)
def make_optimizer(module: nn.Module, role: str) -> torch.optim.Optimizer:  # type: ignore[empty-body]
    """Build the optimizer of one network. First; the engine's own is Adam(1e-4, betas (0.9, 0.99)).

    :param role: "generator" or "discriminator".
    """


@hookspec
def data_digest() -> dict[str, str]:  # type: ignore[empty-body]
    """Say which data the plugin reads, so that a run on other data is not taken for the same run.

    Collected. Called after `run_start` when a run is assembled. A comparison that looks for runs
    that exist calls it without `run_start`. The items of a plugin that provides `sample_real` or
    `sample_batch` are the training data; those of all others are weights. The engine itself digests
    the images of `evaluation_images`, and the files that plugins read by `load_weights` and
    `read_weights`.

    :returns: name of the item -> digest of its content, in the order in which the plugin reads
        them. Images: `ImageStore.digests`. Files: `file_digests`. Drawn or painted data:
        `content_digest` of all that the samples depend on, beside the options. Equal for all seeds
        of the recipe.
    """


@hookspec
def evaluation_images() -> dict[str, Tensor]:  # type: ignore[empty-body]
    """Held-out images, never trained on. Collected; called once, when the run is assembled.

    :returns: name -> uint8 [3, H, W], or [1, H, W] for a grey image, on the CPU, any size.
    """


# --- tensor --------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def sample_real(batch_size: int, device: torch.device) -> Tensor:  # type: ignore[empty-body]
    """Draw real samples: the data source. One, required.

    Called before every D step and every G step (once an iteration with `first = "generator"`), and
    once with `batch_size` 2 when the run is assembled. The choice of samples may depend only on
    `self.host_rng` or `self.rng`.

    :returns: [batch_size, ...] on `device`, floating point. Images are HR crops in 0..1.
    """


@hookspec
def samples_drawn() -> list[str]:  # type: ignore[empty-body]
    """Name the samples that the plugin drew at its last `sample_real` or `sample_batch`.

    Collected. Asked only about a batch from which numbers came that are not finite.

    :returns: one line for each sample, in order, such as "0801.png at (128, 32)".
    """


@hookspec(firstresult=True)
def degrade(images: Tensor) -> Tensor:  # type: ignore[empty-body]
    """Make the condition, which the generator sees. Chained; begins with the images themselves.

    Examples are blur, bicubic, noise and JPEG, in recipe order. It is also called on whole held-out
    images.

    :param images: [N, C, H, W] in 0..1, H and W divisible by the scale.
    :returns: the condition, [N, C, h, w] in 0..1.
    """


@hookspec(firstresult=True)
def sample_batch(batch_size: int, device: torch.device) -> Batch:  # type: ignore[empty-body]
    """Make the batch of one step. First; the engine's own is `sample_real`, then `degrade`."""


@hookspec(firstresult=True)
def augment(images: Tensor, condition: Tensor) -> Tensor:  # type: ignore[empty-body]
    """Change the images that the discriminator sees, both real and fake. Chained.

    Called in the D step on the real images, then on the fake images. Called in the G step on the
    fake images, through which the generator's gradient must pass; also on the real images when a
    generator loss reads the real logits. A plugin that gives the same result in both steps sets
    `share_forward = True`.

    :returns: images for the discriminator. Their number of channels may change:
        `make_discriminator` receives the shape after all augmentations.
    """


@hookspec(firstresult=True)
def labels(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[empty-body]
    """The targets of the discriminator. Chained; begins with ones for real and zeros for fake.

    Called in the D step. Refused in a recipe whose discriminator loss reads no labels.

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
) -> Losses:
    """Terms of the discriminator's loss on the images that it saw, after `augment`. Collected.

    Called in the D step, in at least float32, outside autocast. The terms are summed.

    :param discriminator: the module itself, not its compiled form.
    :param real, fake: the images after `augment`. Neither requires a gradient.
    :param real_logits, fake_logits: the discriminator's answers, with gradient to its weights.
    :returns: log name ("D/gradient_penalty") -> 0-d tensor, already weighted.
    """


@hookspec
def generator_loss(  # type: ignore[empty-body]
    fake_logits: Tensor, real_logits: Tensor, fake: Tensor, real: Tensor, condition: Tensor
) -> Losses:
    """Terms of the generator's loss on its images before `augment`. Collected, summed.

    Called in the G step. A plugin that names `fake_logits` or `real_logits` is adversarial: it is
    refused when there is no discriminator, and left out during pretraining. The discriminator runs
    on the real images only when some plugin names `real_logits`; these have no gradient to the
    generator.

    :param fake: the generator's images, not augmented, with their gradient.
    :param real: the real images, not augmented.
    :returns: log name ("G/pixel_loss") -> 0-d tensor, already weighted.
    """


@hookspec(firstresult=True)
def gradients(module: nn.Module, role: str) -> Losses:  # type: ignore[empty-body]
    """Change the gradients of one network in place, before its optimizer step. Chained.

    Called in every step after the backward pass, with the gradients of the whole batch. It begins
    with an empty dict.

    :param module: the network that the step moves; several discriminators are a ModuleList. The
        gradient of a parameter is its `.grad`, which is None where there is no gradient.
    :param role: "generator" or "discriminator".
    :returns: the dict of the plugins before, with own values to log: log name ("G/gradient_norm")
        -> 0-d tensor, detached.
    """


# --- event ---------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def discriminator_step(run: Run, batch: Batch) -> Losses:  # type: ignore[empty-body]
    """One update of the discriminator, `d_steps` times an iteration. First; the engine's is last.

    A plugin may wrap it, or answer before the engine by returning a dict (`{}` skips the update).

    :returns: log name -> 0-d tensor, detached, still on the device.
    """


@hookspec(firstresult=True)
def generator_step(run: Run, batch: Batch) -> Losses:  # type: ignore[empty-body]
    """One update of the generator, `g_steps` times an iteration. First; the engine's is last."""


@hookspec
def check_recipe(run: Run) -> None:
    """Called first, before any data are read and any network is built. All plugins.

    A plugin checks here what it requires of the recipe, of other plugins and of its own files, so
    that a fault is told at once, not after the data were decoded. For a fault it raises
    `self.error(fault, option)`. The shapes, the networks and the held-out images are missing in
    `run`. A file of weights that needs none of these is read here.
    """


@hookspec
def run_start(run: Run) -> None:
    """Called when everything is built, and nothing is trained or loaded yet. All plugins.

    A plugin makes its running state here, and checks what it requires of shapes, networks and
    held-out images; for the rest there is `check_recipe`.
    """


@hookspec
def iteration_start(run: Run) -> None:
    """Called before the steps of iteration `run.iteration`, counted from 0. All plugins."""


@hookspec
def iteration_end(run: Run, losses: Losses) -> None:
    """Called after the steps of an iteration. All plugins.

    :param losses: the logged values of this iteration, each the mean over its steps; on the device.
    """


@hookspec
def run_end(run: Run) -> None:
    """Called after the last iteration, or when the run is stopped. All plugins."""


@hookspec(firstresult=True)
def evaluation_generator(generator: nn.Module) -> nn.Module:  # type: ignore[empty-body]
    """Choose the weights to evaluate and keep, such as EMA's. Chained; begins with G itself."""


@hookspec
def score_images(  # type: ignore[empty-body]
    run: Run, sr: Tensor, hr: Tensor, lr: Tensor
) -> dict[str, float | Tensor]:
    """Score one image against its reference, beside PSNR and SSIM. Collected.

    Called without gradients for every held-out image: on the image that the generator made, and
    once in a run on the image that bicubic made. `ganlab eval` calls it too.

    :param sr, hr: uint8 [1, C, H, W] on the run's device, borders not cut. C is 1 for grey.
    :param lr: uint8 [1, 3, h, w], what the generator saw.
    :returns: name -> number, or 0-d tensor. A tensor may stay on the device: all scores are
        brought to the host together. The mean over the images is written to stats.jsonl.
    """


@hookspec
def evaluate(  # type: ignore[empty-body]
    run: Run, generator: nn.Module, images: list[EvaluatedImage]
) -> dict[str, float]:
    """Evaluate the generator as a whole. Collected.

    Called every `evaluate_every` iterations and at the end. `ganlab eval` also calls it, for the
    plugins that name `images`. There the run was never started: `run.G`, `run.D` and `run.held_out`
    are missing.

    :param generator: from `evaluation_generator`, in eval mode, without gradients.
    :param images: the held-out images and what was made from them; empty when there are none.
    :returns: name -> number, written to stats.jsonl.
    """


@hookspec
def verdicts(history: History) -> list[Verdict]:  # type: ignore[empty-body]
    """Say whether training fails. Collected; at every evaluation and checkpoint.

    The engine applies its own rules as well. A verdict is reported once, by its name. The recipe's
    `on_verdict` says what happens then.

    :param history: what `watch_every` and the evaluations have logged so far, plain numbers.
    :returns: what fails now; empty when nothing does.
    """
