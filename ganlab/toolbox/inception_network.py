"""The Inception network of FID and KID, built without a download."""

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


class InceptionFeatures(FeatureExtractorInceptionV3):
    """The Inception v3 of TensorFlow from 2015, which computes the features of every published FID.

    torch-fidelity's network: it resizes to 299 x 299 as TensorFlow 1 does, and maps 0..255 to
    -1..1 itself. The weights are random until a file is loaded. Frozen, in eval mode.

    :param dims: number of features: 64, 192, 768, or 2048 (the pooled ones before the last layer).
    """

    def __init__(self, dims: int = 2048) -> None:
        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        # torch-fidelity downloads the weights when it gets no file
        super().__init__("inception", [str(dims)], feature_extractor_weights_path=empty)
        self.num_features = dims
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.num_batches_tracked = None  # the published file has none

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if state_dict:  # not the empty one above
            return super().load_state_dict(state_dict, *args, **kwargs)
        return None

    def forward(self, images: Tensor) -> Tensor:
        """Features of uint8 images [N, 3, H, W], computed 32 at a time: float32 [N, dims]."""
        return torch.cat([super(InceptionFeatures, self).forward(b)[0] for b in images.split(32)])
