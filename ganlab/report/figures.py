"""The figures of evaluations: the usual ones, their order, which direction is better."""

from collections.abc import Iterable, Sequence

from ganlab.report.model import Arm

FIGURES = ("psnr_y", "ssim_y", "hf_ratio", "lr_psnr")
# without hf_ratio: it is best at 1, so neither higher nor lower is better
HIGHER_IS_BETTER = {
    "psnr_y": True,
    "ssim_y": True,
    "psnr_rgb": True,
    "ssim_rgb": True,
    "lr_psnr": True,
}


def in_order(names: Iterable[str]) -> list[str]:
    """Figures for a list or for columns: the usual ones first; not those of RGB."""
    known = list(names)
    others = [name for name in known if name not in FIGURES and not name.endswith("_rgb")]
    return [*(name for name in FIGURES if name in known), *others]


def direction(figure: str, arms: Sequence[Arm]) -> bool | None:
    """Whether a higher value of a figure is better; None when nobody says so."""
    for arm in arms:
        for record in arm.runs:
            if record.recipe["best_metric"] == figure:
                return record.sign > 0
    return HIGHER_IS_BETTER.get(figure)
