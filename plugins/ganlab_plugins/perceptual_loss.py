"""Perceptual loss: generated and real image should have the same features in VGG19."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field, PrivateAttr
from torch import Tensor
from torch.nn import functional as F

from ganlab import (
    NonNegativeSchedule,
    Plugin,
    RecipePath,
    Run,
    Schedule,
    VGGFeatures,
    degradation,
    hookimpl,
    load_weights,
    weights_file,
)


def _known(layers: dict[str, float]) -> dict[str, float]:
    """Convolutions of VGG19, at least one, each with a factor above 0."""
    names = [name for name in VGGFeatures.layers("vgg19") if name.startswith("conv")]
    if unknown := [name for name in layers if name not in names]:
        raise ValueError(f"must name layers of VGG19, {', '.join(names)}; not {unknown[0]}")
    if not layers or min(layers.values()) <= 0:
        raise ValueError("must name at least one layer, each with a factor above 0")
    return layers


class PerceptualLoss(Plugin):
    """Distance between features of VGG19 (Johnson et al. 2016, arXiv:1603.08155).

        loss = sum over layers l of  layers[l] * mean |d_l|,  d_l = s (F_l(fake) - F_l(real))

    With `kind = "mse"`, d_l^2 takes the place of |d_l|. F_l is the output of layer l of
    torchvision's VGG19, which sees the images normalised by ImageNet's mean and deviation; s is
    `feature_scale`. Known choices:

    - ESRGAN (arXiv:1809.00219): the defaults, conv5_4 before its ReLU, l1.
    - Real-ESRGAN (arXiv:2107.10833), BSRGAN, LDL: layers = { conv1_2 = 0.1, conv2_2 = 0.1,
      conv3_4 = 1.0, conv4_4 = 1.0, conv5_4 = 1.0 }.
    - SRGAN (arXiv:1609.04802): before_relu = false, kind = "mse", feature_scale = 0.0784.

    It needs the weights of VGG19 in a file; nothing is downloaded. It takes colour images only.
    Layers after the deepest one named are not computed.
    """

    published: ClassVar = (VGGFeatures.FILES["vgg19"],)

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on this term."""

    layers: Annotated[dict[str, float], AfterValidator(_known)] = {"conv5_4": 1.0}
    """Convolution -> factor; convI_J is the J-th convolution of block I."""

    before_relu: bool = True
    """Compare the output of the convolutions, as ESRGAN does; if false, of the ReLU after them."""

    kind: Literal["l1", "mse"] = "l1"
    """The distance between features."""

    feature_scale: float = Field(1.0, gt=0)
    """Factor on the features before they are compared; SRGAN's is 1 / 12.75."""

    sharpen: bool = False
    """Compare with the real image after unsharp masking, as Real-ESRGAN does (arXiv:2107.10833).
    The real images seen by D are not sharpened."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Of VGG's convolutions on CUDA; bfloat16 costs less. It changes the loss by at most 0.1 %,
    its gradient by 0.3 to 0.45 of the norm (cosine 0.90 to 0.96; HR 96, random weights)."""

    weights: RecipePath | None = None
    """The file of weights; by default weights/vgg19-dcbb9e9d.pth in ganlab's cache folder."""

    sha256: str = Field("dcbb9e9d", pattern="^[0-9a-fA-F]{8,64}$")
    """Beginning of the file's digest; by default that of the file which torchvision publishes."""

    _network: VGGFeatures | None = PrivateAttr(None)

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        network = VGGFeatures(list(self._factors()))
        file = weights_file(network.file_name, self.weights)
        load_weights(self, network, file, self.sha256, network.source, ignored=network.ignored)
        self._network = network.prepared(self, run, self.precision)

    @hookimpl
    def run_start(self, run: Run) -> None:
        assert self._network is not None
        self._network.check(self, run.real_shape, "real samples")

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        assert self._network is not None, "no network before check_recipe"
        found = self._network(fake)
        with torch.no_grad():
            wanted = self._network(degradation.sharpen(real) if self.sharpen else real)
        distance = F.l1_loss if self.kind == "l1" else F.mse_loss
        size = self.feature_scale
        terms = [
            factor * distance(size * found[name], size * wanted[name])
            for name, factor in self._factors().items()
        ]
        return {f"G/{self.name}": self.weight.value * torch.stack(terms).sum()}

    def _factors(self) -> dict[str, float]:
        """Factor of each layer, by its name in VGGFeatures."""
        if self.before_relu:
            return self.layers
        return {name.replace("conv", "relu"): factor for name, factor in self.layers.items()}
