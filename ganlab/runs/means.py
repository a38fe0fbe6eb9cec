"""Means of scores over images, without those that are not finite, and which of two is better.

A score may be infinite or undefined on an image: PSNR where both images are equal, `hf_ratio` where
the original is flat. One such image would make every mean infinite or undefined.
"""

import math
from collections.abc import Collection, Mapping
from statistics import fmean

Rows = Mapping[str, Mapping[str, float]]
"""Image -> name of a score -> its value."""


def unscored(rows: Rows) -> dict[str, list[str]]:
    """The images on which a score is not finite, by the score; without scores that all have."""
    found: dict[str, list[str]] = {}
    for image, scores in rows.items():
        for name, value in scores.items():
            if not math.isfinite(value):
                found.setdefault(name, []).append(image)
    return found


def left_out(*several: Rows) -> dict[str, list[str]]:
    """The images that no mean of a score counts, so that all means are over the same images.

    :param several: the rows of those who are compared, such as the generator and bicubic. Who has
        no finite value of a score at all decides about no image.
    """
    found: dict[str, list[str]] = {}
    for rows in several:
        for name, images in unscored(rows).items():
            if len(images) < sum(name in scores for scores in rows.values()):
                found[name] = list(dict.fromkeys([*found.get(name, []), *images]))
    return found


def means(rows: Rows, without: Mapping[str, Collection[str]] | None = None) -> dict[str, float]:
    """The mean over images of each score, over its finite values; without scores that have none.

    :param without: from `left_out`: images that do not count. Where none would be left, all finite
        values count.
    """
    names = dict.fromkeys(name for scores in rows.values() for name in scores)
    found = {}
    for name in names:
        values = {i: s[name] for i, s in rows.items() if math.isfinite(s.get(name, math.nan))}
        others = (without or {}).get(name, ())
        kept = [value for image, value in values.items() if image not in others]
        if values:
            found[name] = fmean(kept or values.values())
    return found


def means_of_all(rows: Rows, without: Mapping[str, Collection[str]]) -> dict[str, float]:
    """The same means; nan for a score that has no finite value."""
    names = dict.fromkeys(name for scores in rows.values() for name in scores)
    return dict.fromkeys(names, math.nan) | means(rows, without)


def told(without: Mapping[str, Collection[str]], count: int = 0) -> str:
    """Which images are left out of which means, in words.

    :param count: of all images, where it is told.
    """
    of_all = f" of {count:,}" if count else ""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for name, images in without.items():
        grouped.setdefault(tuple(images), []).append(name)
    parts = []
    for images, names in grouped.items():
        named = ", ".join(images[:3]) + (f" and {len(images) - 3} more" if len(images) > 3 else "")
        plural = "image" if len(images) == 1 and not count else "images"
        of_images = f": {len(images):,}{of_all} {plural} ({named})" if images else ""
        parts.append(f"{', '.join(names)}{of_images}")
    return "; ".join(parts)


def is_better(
    figure: float, scores: Mapping[str, float], best: float, of_best: Mapping[str, float], sign: int
) -> bool:
    """Whether a figure is better than the best one so far.

    Means over other images cannot be compared. So when both figures are means of scores of images,
    and not of the same ones, the means over the images that both have are compared.

    :param scores, of_best: the finite scores behind each figure; empty when it is no such mean.
    :param sign: 1 when the highest value is the best, -1 when the lowest is.
    """
    both = scores.keys() & of_best.keys()
    if both and scores.keys() != of_best.keys():
        figure, best = (fmean(some[name] for name in sorted(both)) for some in (scores, of_best))
    return math.isfinite(figure) and sign * (figure - best) > 0
