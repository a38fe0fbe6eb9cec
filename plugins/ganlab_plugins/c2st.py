"""Classifier two-sample test: can a classifier tell patches of SR from patches of HR?"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganlab import (
    EvaluatedImage,
    Plugin,
    Run,
    hookimpl,
    log_spectrum,
    random_patches,
    require_held_out,
)


class C2ST(Plugin):
    """Accuracy of a classifier between patches of SR and of HR, on patches not used to fit it.

    Fitted to one half of the patches and tried on the n of the other. If SR and HR were of one
    law, the accuracy would be N(1/2, 1 / (4 n)); `c2st` is the accuracy (1/2 is right) and `c2st_p`
    the chance of as high a one under that law (Lopez-Paz and Oquab 2016, arXiv:1610.06545). The
    classifier is a logistic regression on the log magnitudes of a patch's discrete cosine
    transform: it sees missing detail, noise and repeated patterns, and can be read; a network
    might see more.

    SR and HR patches come from independent places, for those of one place are dependent, and then
    1 / (4 n) is not the variance. The statement is about these held-out images and no others.
    Under 1 s an evaluation at the defaults.
    """

    patch: int = Field(16, ge=4, le=32)
    """Side of a patch in pixels."""

    num_patches: int = Field(2000, ge=20)
    """Patches of each kind, half of them to fit and half to try: n is `num_patches`."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        require_held_out(self, run, self.patch)

    @hookimpl
    def evaluate(self, images: list[EvaluatedImage]) -> dict[str, float]:
        if not images:
            return {}
        sr, _ = random_patches(self, images, self.patch, self.num_patches)
        _, hr = random_patches(self, images, self.patch, self.num_patches)
        accuracy, p = classifier_test(log_spectrum(sr), log_spectrum(hr))
        return {self.name: accuracy, f"{self.name}_p": p}


def classifier_test(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Accuracy between two samples on their second halves, and its one-sided p-value.

    :param first, second: [N, D], N the same and at least 2; rows independent.
    """
    from scipy.stats import norm
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    half = len(first) // 2
    fitted = torch.cat([first[:half], second[:half]]).numpy()
    tried = torch.cat([first[half:], second[half:]]).numpy()
    kind = [np.repeat([0, 1], rows) for rows in (half, len(first) - half)]
    # standardised, the penalty of C = 0.01 keeps hundreds of features from fitting noise
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    classifier.fit(fitted, kind[0])
    accuracy = float(classifier.score(tried, kind[1]))
    return accuracy, float(norm.sf((accuracy - 0.5) * 2 * len(tried) ** 0.5))
