"""Networks that compare images by trained features: VGG features, LPIPS, DISTS.


The convolutions are torchvision's, under the names that its published files use, so that
`load_weights(..., ignored=network.ignored)` fills them; nothing is ever downloaded. The few weights
that LPIPS and DISTS learnt on top of them are read from the torchmetrics package.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.plugin import Plugin
from ganlab.published import PublishedFile
from ganlab.run import Run

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Precision = Literal["float32", "bfloat16"]
VGG_BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


def _of_torchvision(name: str, file_name: str, size: int, sha256: str) -> PublishedFile:
    """A file of torchvision, which states the first 8 digits of the digest in the file's name."""
    return PublishedFile(
        name=name,
        source=f"https://download.pytorch.org/models/{file_name}",
        licence="BSD-3-Clause; trained on ImageNet, whose terms may apply",
        size=size,
        sha256=sha256,
        sha256_from="torchvision (the first 8 digits) and public records",
    )


class Backbone(nn.Module):
    """The convolutions of a torchvision classifier, random until `load_weights` fills them.

    Its ReLUs do not work in place. torchvision's do, and would overwrite the features before them.
    """

    FILES: ClassVar[dict[str, PublishedFile]] = {
        "alexnet": _of_torchvision(
            "alexnet", "alexnet-owt-7be5be79.pth", 244_408_911,
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        ),
        "squeezenet1_1": _of_torchvision(
            "squeezenet", "squeezenet1_1-b8a52dc0.pth", 4_958_839,
            "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        ),
        "vgg16": _of_torchvision(
            "vgg16", "vgg16-397923af.pth", 553_433_881,
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        ),
        "vgg19": _of_torchvision(
            "vgg19", "vgg19-dcbb9e9d.pth", 574_673_361,
            "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        ),
    }  # fmt: skip
    """The published weights of each architecture."""

    ignored = ("classifier.",)
    """Beginnings of names in the published file that `load_weights` must leave out."""

    smallest = 1
    """The smallest side, in pixels, of an image that the network accepts."""

    def __init__(self, architecture: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.architecture = architecture
        self.features = _convolutions(architecture)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    @property
    def source(self) -> str:
        """The address of torchvision's published weights."""
        return self.FILES[self.architecture].source

    @property
    def file_name(self) -> str:
        """The file name of the published weights, such as vgg19-dcbb9e9d.pth."""
        return self.FILES[self.architecture].file_name

    @property
    def sha256(self) -> str:
        """The first 8 hexadecimal digits of the published weights' digest."""
        return self.FILES[self.architecture].sha256[:8]

    def check(self, plugin: Plugin, shape: tuple[int, ...], what: str) -> None:
        """Refuse images that the network does not accept.

        :param shape: of one image.
        :param what: the name of the images in the message.
        :raises RecipeError: when they are not [3, H, W], or too small.
        """
        if len(shape) != 3 or shape[0] != 3:
            raise plugin.error(f"needs colour images, and {what} are of shape {[*shape]}")
        if min(shape[1:]) < self.smallest:
            raise plugin.error(
                f"{self.architecture} needs images of {self.smallest} pixels a side, and {what} "
                f"are {shape[2]} x {shape[1]}; make them larger"
            )

    def prepared(self, plugin: Plugin, run: Run, precision: Precision) -> Self:
        """Move to the run's device, in eval mode, with fixed weights, to compute a loss.

        With "bfloat16", the convolutions run in it on CUDA, channels last. What they are compared
        by is computed in the dtype of the images in any case. On other devices, where it is slower,
        they stay in float32, and a note says so.

        :param plugin: whose option `precision` is.
        :raises RecipeError: for bfloat16 in a run in float64.
        """
        network = self.to(run.device, run.dtype).eval().requires_grad_(False)
        if precision == "float32":
            return network
        if run.dtype == torch.float64:
            raise plugin.error(
                'precision = "bfloat16" in a recipe of precision = "float64"; leave one out',
                "precision",
            )
        if run.device.type == "cuda":
            network.features.to(torch.bfloat16).to(memory_format=torch.channels_last)
        else:
            run.notes.append(f"{plugin.name}: bfloat16 is for CUDA; its features are float32 here")
        return network

    @property
    def dtype(self) -> torch.dtype:
        """In which the convolutions are computed."""
        return next(self.features.parameters()).dtype

    def normalised(self, images: Tensor) -> Tensor:
        """Images in 0..1, normalised channel by channel as in the classifier's training."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (images - mean) / std

    def at(self, images: Tensor, nodes: list[int]) -> list[Tensor]:
        """The outputs of these layers; no layer after the last of them is computed.

        :param images: normalised.
        :param nodes: the layers, counted from 0, in ascending order.
        """
        found, x = [], images.to(self.dtype)
        for index, layer in enumerate(self.features[: nodes[-1] + 1]):
            x = layer(x)
            if index in nodes:
                found.append(x.to(images.dtype))
        return found


class VGGFeatures(Backbone):
    """Features of VGG19 or VGG16 (Simonyan & Zisserman 2014, arXiv:1409.1556) at named layers.

    conv5_4 is the output of the fourth convolution of the fifth block, before its ReLU; relu5_4
    after it; pool5 the max pooling at the end of the block.

    :raises ValueError: when there is no such layer.
    """

    def __init__(
        self, layers: list[str], architecture: Literal["vgg16", "vgg19"] = "vgg19"
    ) -> None:
        super().__init__(architecture, IMAGENET_MEAN, IMAGENET_STD)
        known = self.layers(architecture)
        if unknown := [name for name in layers if name not in known]:
            there = ", ".join(known)
            raise ValueError(f"{architecture} has no layer {unknown[0]}; its layers are {there}")
        self.nodes = {name: known[name] for name in sorted(layers, key=known.__getitem__)}
        deepest = max(self.nodes.values())
        poolings = [name for name in known if name.startswith("pool") and known[name] <= deepest]
        self.smallest = 2 ** len(poolings)

    @staticmethod
    def layers(architecture: str) -> dict[str, int]:
        """Name -> place in torchvision's `features`, in order."""
        names = []
        for block, convolutions in enumerate(VGG_BLOCKS[architecture], 1):
            for number in range(1, convolutions + 1):
                names += [f"conv{block}_{number}", f"relu{block}_{number}"]
            names.append(f"pool{block}")
        return {name: place for place, name in enumerate(names)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Layer name -> features.

        :param images: [N, 3, H, W] in 0..1; ImageNet's mean and deviation are applied here.
        """
        found = self.at(self.normalised(images), list(self.nodes.values()))
        return dict(zip(self.nodes, found, strict=True))


class LPIPSNetwork(Backbone):
    """LPIPS, version 0.1 (Zhang et al. 2018, arXiv:1801.03924), lower is closer.

        sum over layers l of mean over positions of sum over channels c of
            w_lc (a_lc / |a_l| - b_lc / |b_l|)^2

    a and b are the features of the two images after the ReLUs, |.| the norm over channels at a
    position, w >= 0 the published linear layers. As in torchmetrics, |a| = sqrt(1e-8 + sum a^2).
    The authors' code has sqrt(sum a^2) + 1e-10, whose gradient is not finite where all features
    are 0.
    """

    ARCHITECTURES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
    NODES = {
        "alex": [1, 4, 7, 9, 11],
        "vgg": [3, 8, 15, 22, 29],
        "squeeze": [1, 4, 7, 9, 10, 11, 12],
    }
    SMALLEST = {"alex": 31, "vgg": 16, "squeeze": 17}

    def __init__(self, network: Literal["alex", "vgg", "squeeze"] = "alex") -> None:
        # the authors' numbers are for images in -1..1; here they are converted to 0..1
        mean = [(1 + shift) / 2 for shift in (-0.030, -0.088, -0.188)]
        std = [scale / 2 for scale in (0.458, 0.448, 0.450)]
        super().__init__(self.ARCHITECTURES[network], (*mean,), (*std,))
        self.nodes, self.smallest = self.NODES[network], self.SMALLEST[network]
        learnt = _shipped(f"lpips_models/{network}.pth")
        for number in range(len(self.nodes)):
            weight = learnt[f"lin{number}.model.1.weight"]
            self.register_buffer(f"linear{number}", weight, persistent=False)

    @classmethod
    def published(cls, *networks: str) -> tuple[PublishedFile, ...]:
        """The published weights of these networks."""
        return tuple(cls.FILES[cls.ARCHITECTURES[network]] for network in networks)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The distance of each pair of images.

        :param first, second: [N, 3, H, W] in 0..1.
        :returns: [N].
        """
        ours, theirs = (self.at(self.normalised(images), self.nodes) for images in (first, second))
        distance = first.new_zeros(len(first))
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            difference = (self._unit(a) - self._unit(b)).square()
            weighted = F.conv2d(difference, self.get_buffer(f"linear{number}"))
            distance = distance + weighted.mean(dim=(1, 2, 3))
        return distance

    @staticmethod
    def _unit(features: Tensor) -> Tensor:
        return features * torch.rsqrt(1e-8 + features.square().sum(1, keepdim=True))


class DISTSNetwork(Backbone):
    """DISTS (Ding et al. 2020, arXiv:2004.07728), lower is closer: structure and texture.

        1 - sum over stages and channels of alpha l + beta s
        l = (2 m_a m_b + c) / (m_a^2 + m_b^2 + c),   s = (2 v_ab + c) / (v_a + v_b + c)

    over six stages: first the image itself, then VGG16 after the last ReLU of each block.
    m, v_a, v_b, v_ab are the global means, variances and covariance of one channel, c = 1e-6,
    alpha and beta the published ones, which sum to 1. Max pooling is replaced by L2 pooling,
    sqrt(1e-12 + blur(a^2)) with a 3x3 Hann window and stride 2.
    """

    STAGES = ((0, 4), (5, 9), (10, 16), (17, 23), (24, 30))
    CHANNELS = (3, 64, 128, 256, 512, 512)
    C = 1e-6

    def __init__(self) -> None:
        super().__init__("vgg16", IMAGENET_MEAN, IMAGENET_STD)
        learnt = _shipped("dists_models/weights.pt")
        total = learnt["alpha"].sum() + learnt["beta"].sum()
        for name in ("alpha", "beta"):
            self.register_buffer(name, learnt[name].flatten() / total, persistent=False)
        taps = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("window", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The distance of each pair of images.

        :param first, second: [N, 3, H, W] in 0..1, of any size; the authors shrank their images to
            a shorter side of 256.
        :returns: [N].
        """
        likeness = first.new_zeros(len(first))
        alphas, betas = (self.get_buffer(name).split(self.CHANNELS) for name in ("alpha", "beta"))
        stages = zip(self.stages(first), self.stages(second), alphas, betas, strict=True)
        for a, b, alpha, beta in stages:
            mean_a, mean_b = (x.mean(dim=(2, 3), keepdim=True) for x in (a, b))
            centred_a, centred_b = a - mean_a, b - mean_b
            covariance = (centred_a * centred_b).mean(dim=(2, 3))
            variances = (centred_a.square() + centred_b.square()).mean(dim=(2, 3))
            m_a, m_b = mean_a.flatten(1), mean_b.flatten(1)
            texture = (2 * m_a * m_b + self.C) / (m_a.square() + m_b.square() + self.C)
            structure = (2 * covariance + self.C) / (variances + self.C)
            likeness = likeness + texture @ alpha + structure @ beta
        return 1 - likeness

    def stages(self, images: Tensor) -> list[Tensor]:
        """The tensors that are compared: the image, and five maps of features."""
        found, x = [images], self.normalised(images).to(self.dtype)
        for number, (begin, end) in enumerate(self.STAGES):
            x = self._pool(x) if number else x
            x = self.features[begin:end](x)
            found.append(x.to(images.dtype))
        return found

    def _pool(self, features: Tensor) -> Tensor:
        channels = features.shape[1]
        window = self.get_buffer("window").to(features.dtype).expand(channels, -1, -1, -1)
        blurred = F.conv2d(features.square(), window, stride=2, padding=1, groups=channels)
        return (blurred + 1e-12).sqrt()


def _convolutions(architecture: str) -> nn.Sequential:
    """torchvision's `features` of a classifier, initialised as torchvision initialises its VGGs."""
    from torchvision import models

    with torch.device("meta"):  # so the classifier, most of the parameters, is never filled
        features: nn.Sequential = models.get_model(architecture, weights=None).features
    features = features.to_empty(device="cpu")
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.ReLU):
            layer.inplace = False
    return features


def _shipped(name: str) -> dict[str, Tensor]:
    """A file of weights from the torchmetrics package."""
    package = find_spec("torchmetrics")  # found, not imported: an import takes seconds
    assert package is not None and package.origin is not None
    file = Path(package.origin).parent / "functional" / "image" / name
    weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return weights
