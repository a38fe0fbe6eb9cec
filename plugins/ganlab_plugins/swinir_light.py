"""SwinIR-light: a small transformer with attention in shifted windows."""

from collections import OrderedDict

import torch
from pydantic import Field
from torch import Tensor, nn

from ganlab import Plugin, hookimpl

SUPPORTED_SCALES = (2, 3, 4)

WINDOW = 8
NUM_HEADS = 6
MLP_RATIO = 2
USUAL_SIDE = 64
"""Side of the LR crops in the published training; the state dict holds the mask of this size."""

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean colour of DIV2K's training images."""


class SwinIRLight(Plugin):
    """Lightweight SwinIR (Liang et al. 2021, arXiv:2108.10257), for x2, x3 and x4.

    A 3x3 convolution is followed by `num_layers` groups. A group is `num_blocks` Swin transformer
    blocks (arXiv:2103.14030) and a convolution, with a skip over the group. A skip goes over all
    groups too; a 3x3 convolution and one pixel shuffle follow. A block is attention with 6 heads in
    windows of 8 x 8 pixels, then a hidden layer of twice the channels with GELU; each of the two
    has layer norm before it and a skip. Every second block shifts the windows by 4 pixels. There
    are 929,628 parameters at x4.

    Sides that 8 does not divide are extended by reflection, and the result is cut, so images of any
    size work. The mean of DIV2K is subtracted from an RGB input and added to the output.

    Parameters and buffers are named as in the authors' code, so its checkpoints fit. They are
    initialised as there: linear layers with a Gaussian of deviation 0.02 and biases 0, convolutions
    with torch's default. Stochastic depth (0.1 there) is left out, so that the network in training
    is the network that is evaluated. The output is not clamped.
    """

    width: int = Field(60, ge=NUM_HEADS, multiple_of=NUM_HEADS)
    """Channels of every hidden layer, a multiple of the 6 heads."""

    num_layers: int = Field(4, ge=1)
    """Number of groups."""

    num_blocks: int = Field(6, ge=1)
    """Transformer blocks in each group."""

    @hookimpl
    def make_generator(
        self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]
    ) -> nn.Module:
        scale = self.scale_of(condition_shape, real_shape, SUPPORTED_SCALES)
        inputs, outputs = condition_shape[0], real_shape[0]
        return SwinIRLightNet(inputs, outputs, scale, self.width, self.num_layers, self.num_blocks)


class SwinIRLightNet(nn.Module):
    """The network of SwinIRLight: [N, C, h, w] to [N, C, scale * h, scale * w]."""

    mean: Tensor

    def __init__(
        self, inputs: int, outputs: int, scale: int, width: int, num_layers: int, num_blocks: int
    ) -> None:
        super().__init__()
        self.scale, self.shifts = scale, num_blocks > 1
        mean = RGB_MEAN if inputs == outputs == 3 else (0.0,)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(inputs, width, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(width)})
        self.layers = nn.ModuleList(_Group(width, num_blocks) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = nn.Conv2d(width, width, 3, padding=1)
        wide = nn.Conv2d(width, outputs * scale**2, 3, padding=1)
        self.upsample = nn.Sequential(wide, nn.PixelShuffle(scale))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, lr: Tensor) -> Tensor:
        height, width = (side * self.scale for side in lr.shape[-2:])
        features = self.conv_first(_reflected(lr - self.mean, WINDOW))
        pixels = self.patch_embed["norm"](features.permute(0, 2, 3, 1))
        mask = self._mask(pixels)
        for layer in self.layers:
            pixels = layer(pixels, mask)
        deep = self.norm(pixels).permute(0, 3, 1, 2)
        images: Tensor = self.upsample(features + self.conv_after_body(deep))
        return images[..., :height, :width] + self.mean

    def _mask(self, pixels: Tensor) -> Tensor | None:
        """The mask of the shifted windows, the same for all blocks."""
        if not self.shifts:
            return None
        height, width = pixels.shape[1:3]
        usual = self.get_buffer("layers.0.residual_group.blocks.1.attn_mask")
        # torch.export would take the comparison for a rule about the size
        if not torch.compiler.is_exporting() and height == width == USUAL_SIDE:
            return usual
        return _shift_mask(height, width, pixels.device).to(usual.dtype)


class _Group(nn.Module):
    """Blocks and a convolution, with a skip: [N, H, W, C] to the same shape, as in a block."""

    def __init__(self, width: int, num_blocks: int) -> None:
        super().__init__()
        blocks = nn.ModuleList(_Block(width, shifted=i % 2 == 1) for i in range(num_blocks))
        self.residual_group = nn.ModuleDict({"blocks": blocks})
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, pixels: Tensor, mask: Tensor | None) -> Tensor:
        deep = pixels
        for block in self.residual_group["blocks"]:  # type: ignore[attr-defined]
            deep = block(deep, mask)
        residual: Tensor = self.conv(deep.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return pixels + residual


class _Block(nn.Module):
    def __init__(self, width: int, shifted: bool) -> None:
        super().__init__()
        self.shift = WINDOW // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = _WindowAttention(width)
        self.norm2 = nn.LayerNorm(width)
        fc1, fc2 = nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))
        if shifted:
            usual = _shift_mask(USUAL_SIDE, USUAL_SIDE, torch.device("cpu"))
            self.register_buffer("attn_mask", usual)

    def forward(self, pixels: Tensor, mask: Tensor | None) -> Tensor:
        shifted = self.norm1(pixels).roll((-self.shift, -self.shift), (1, 2))
        attended: Tensor = self.attn(_windows(shifted), mask if self.shift else None)
        whole = _whole(attended, pixels.shape).roll((self.shift, self.shift), (1, 2))
        pixels = pixels + whole
        answer: Tensor = self.mlp(self.norm2(pixels))
        return pixels + answer


class _WindowAttention(nn.Module):
    """Attention among the pixels of a window: [windows, 64, C] to the same shape."""

    relative_position_index: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        distances = (2 * WINDOW - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.empty(distances, NUM_HEADS))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _distances())
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        num, size, width = windows.shape
        heads = self.qkv(windows).view(num, size, 3, NUM_HEADS, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind()
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        scores = query * (width // NUM_HEADS) ** -0.5 @ key.mT + bias
        if mask is not None:
            # the windows of an image are consecutive; `len` would fix their number in torch.export
            per_image = scores.view(-1, mask.shape[0], NUM_HEADS, size, size) + mask[:, None]
            scores = per_image.view(num, NUM_HEADS, size, size)
        attended = (scores.softmax(-1) @ value).transpose(1, 2).reshape(num, size, width)
        answer: Tensor = self.proj(attended)
        return answer


def _windows(pixels: Tensor) -> Tensor:
    """Pixels [N, H, W, C] cut into windows [N * windows, 64, C], row by row."""
    num, height, width, channels = pixels.shape
    tiles = pixels.view(num, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return tiles.transpose(2, 3).reshape(-1, WINDOW**2, channels)


def _whole(windows: Tensor, shape: torch.Size) -> Tensor:
    num, height, width, channels = shape
    tiles = windows.view(num, height // WINDOW, width // WINDOW, WINDOW, WINDOW, channels)
    return tiles.transpose(2, 3).reshape(shape)


def _distances() -> Tensor:
    """Row of the bias table for the distance between any two pixels of a window: [64, 64]."""
    steps = torch.arange(WINDOW)
    rows, columns = (place.flatten() for place in torch.meshgrid(steps, steps, indexing="ij"))
    down, right = (place[:, None] - place + WINDOW - 1 for place in (rows, columns))
    return down * (2 * WINDOW - 1) + right


def _shift_mask(height: int, width: int, device: torch.device) -> Tensor:
    """[windows, 64, 64]: -100 between pixels that share a window only after the roll, else 0."""

    def came_around(side: int) -> Tensor:
        return torch.arange(side, device=device) >= side - WINDOW // 2

    part = 2 * came_around(height).long()[:, None] + came_around(width).long()
    of_window = _windows(part[None, ..., None])[..., 0]
    return torch.where(of_window[:, :, None] == of_window[:, None, :], 0.0, -100.0)


def _reflected(images: Tensor, multiple: int) -> Tensor:
    """Images reflected at the right and lower edge until both sides are multiples of `multiple`."""
    for axis in (-2, -1):
        side = images.shape[axis]
        if side % multiple:
            # F.pad reflects at most side - 1 pixels; this repeats the reflection as often as needed
            period = max(2 * (side - 1), 1)
            place = torch.arange(side + -side % multiple, device=images.device) % period
            images = images.index_select(axis, torch.minimum(place, period - place))
    return images
