"""Label smoothing changes the target of real images, and nothing else."""

import pluggy
import pytest
import torch
from ganlab_plugins.bce import BCE
from ganlab_plugins.label_smoothing import LabelSmoothing
from pydantic import ValidationError

from ganlab import Schedule, hookimpl, hookspecs


class OnesAndZeros:
    @hookimpl(trylast=True)
    def labels(self, real_logits, fake_logits):
        return torch.ones_like(real_logits), torch.zeros_like(fake_logits)


class Flipped:
    @hookimpl(wrapper=True)
    def labels(self):
        real, fake = yield
        return fake, real


def labels(*plugins, logits):
    manager = pluggy.PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    for plugin in (OnesAndZeros(), *plugins):
        manager.register(plugin)
    manager.check_pending()
    return manager.hook.labels(real_logits=logits, fake_logits=logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_real_labels_become_nine_tenths_and_fake_labels_stay_zero(dtype):
    real, fake = labels(LabelSmoothing(), logits=torch.randn(2, 1, 3, 5, dtype=dtype))
    assert torch.equal(real, torch.full((2, 1, 3, 5), 0.9, dtype=dtype))
    assert torch.equal(fake, torch.zeros(2, 1, 3, 5, dtype=dtype))


def test_the_label_is_read_at_every_iteration():
    schedule = Schedule.model_validate({"from": 0.8, "to": 1.0, "over": 10})
    smoothing = LabelSmoothing(real_label=schedule)
    smoothing.real_label.advance(5)
    real, _ = labels(smoothing, logits=torch.zeros(1, 1))
    assert real.item() == pytest.approx(0.9)


def test_a_real_image_labelled_fake_by_another_plugin_stays_fake():
    real, fake = labels(Flipped(), LabelSmoothing(), logits=torch.zeros(1, 1))
    assert (real.item(), fake.item()) == (0, 1)


def test_the_best_logit_for_real_images_is_that_of_the_label():
    # d/dr of the cross-entropy is sigmoid(r) - label: zero at log(.9 / .1)
    logits = torch.full((1, 1), 2.1972245773362196, dtype=torch.float64, requires_grad=True)
    real, fake = labels(LabelSmoothing(), logits=logits.detach())
    BCE().discriminator_loss(logits, torch.zeros(1, 1), real, fake).backward()
    assert logits.grad.item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("label", [0.0, -0.1, 1.1])
def test_a_label_that_is_no_probability_of_real_is_refused(label):
    with pytest.raises(ValidationError, match="must be above 0 and at most 1"):
        LabelSmoothing(real_label=Schedule.constant(label))
