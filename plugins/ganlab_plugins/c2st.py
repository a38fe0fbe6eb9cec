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
    """Classifier two-sample test of SR and HR (Lopez-Paz and Oquab 2016, arXiv:1610.06545).

    A classifier is fitted to one half of the patches of SR and HR, and tested on the n patches of
    the other half. `c2st` is its accuracy there; 1/2 is right. If the patches of SR and HR were
    identically distributed, the accuracy would be distributed as N(1/2, 1 / (4 n)); `c2st_p` is
    the probability of an accuracy at least as high in that case. The classifier is a logistic
    regression on the log magnitudes of a patch's discrete cosine transform: it detects missing
    detail, noise and repeated patterns, and its weights can be read; a network might detect more.

    SR and HR patches come from independent places: patches of the same place are dependent, and
    then the variance is not 1 / (4 n). The result holds for these held-out images only. An
    evaluation takes less than 1 s at the defaults.
    """

    patch: int = Field(16, ge=4, le=32)
    """Side of a patch in pixels."""

    num_patches: int = Field(2000, ge=20, le=100_000)
    """Patches of SR, and as many of HR; one half is for the fit, one for the test (n of them)."""

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
    """Accuracy of a classifier on the second halves of two samples, and its one-sided p-value.

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
    # with standardised features, the penalty of C = 0.01 keeps hundreds of them from fitting noise
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    classifier.fit(fitted, kind[0])
    accuracy = float(classifier.score(tried, kind[1]))
    return accuracy, float(norm.sf((accuracy - 0.5) * 2 * len(tried) ** 0.5))
