"""`ganlab score`: scores of pictures against their originals, by files alone, without a run."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganlab.assembly import open_run
from ganlab.commands.apply import show_left_out, show_tables
from ganlab.commands.many import all_sound, beside, listed, or_fault, read_noting, tell
from ganlab.errors import RecipeError
from ganlab.evaluation.scores import SCORES, grey_plane, numbers, reference_scores
from ganlab.images.files import ImageError, read_image
from ganlab.images.metrics import WINDOW, psnr
from ganlab.images.resampling import passing_matrices, resize, to_float, to_uint8
from ganlab.images.upscaling import bicubic
from ganlab.recipe.file import did_you_mean
from ganlab.recipe.model import load_recipe
from ganlab.run import Run, merged
from ganlab.runs.means import left_out, means_of_all
from ganlab.speed.device import pick_device

# what programs append to the name of a picture: baby_x4, 0801x4, baby_SR, img_001_SRF_4_HR, a_out
_ENDING = re.compile(r"(?i)([ _.-]*(x\d+|srf_\d+)|[ _.-]+(sr|hr|lr|gt|out))$")
MOST_NAMES = 5  # in a message


@dataclass(frozen=True, slots=True)
class Protocol:
    """How pictures are scored."""

    scale: int | None
    """HR is cropped to a multiple of it; None crops nothing."""
    shave: int
    """Pixels cut from every side before PSNR and SSIM."""
    run: Run | None = None
    """Whose plugins give further scores."""


@dataclass(frozen=True, slots=True)
class Trio:
    """The files of one picture."""

    name: str
    sr: Path
    hr: Path
    lr: Path | None


def score_files(
    sr: Path,
    hr: Path,
    lr: Path | None = None,
    scale: int | None = None,
    shave: int | None = None,
    metrics: Iterable[str] = (),
    recipe: Path | None = None,
) -> dict[str, Any]:
    """Score every picture of a folder against the original of its name, or one file against one.

    The protocol is that of `ganlab eval`: HR is cropped at the right and the bottom to a multiple
    of the scale, `shave` pixels are cut (the scale, by default), 8 bits. With `lr` there are two
    more things: bicubic enlargement of LR, scored like SR; and `lr_psnr`, of SR shrunk by bicubic
    against LR.

    :param scale: when it is not given, it is the one of HR and LR.
    :param metrics: only these scores; all by default.
    :param recipe: a recipe whose plugins give further scores of a picture.
    :returns: {"scale", "shave", "images": {name: {"SR": {...}, "bicubic": {...}}}, "mean": {"SR":
        {...}, "bicubic": {...}}, "left_out": {score: images}, "files": {name: the file that was
        scored}}; "bicubic" with `lr`.
    :raises RecipeError: when a partner is missing, sizes do not fit, or the scale is unknown.
    """
    trios = _trios(sr, hr, lr)
    scale = scale or (_scale_of(trios) if lr else None)
    if scale is None and shave is None:
        raise RecipeError(
            "which border to cut is unknown: give --scale N (HR is cropped to a multiple of N, and "
            "borders of N pixels are cut), --lr LR, or --shave N"
        )
    protocol = Protocol(scale, scale or 0 if shave is None else shave, _run(recipe, scale, lr))
    rows: dict[str, Any] = {}
    remarks: dict[str, str] = {}
    scored = beside(or_fault(lambda trio: _scored(trio, protocol, remarks)), trios)
    for trio, row in zip(trios, all_sound(scored, "pictures"), strict=True):
        rows[trio.name] = row
    tell(remarks)
    by_who = {
        who: {image: row[who] for image, row in rows.items()} for who in next(iter(rows.values()))
    }
    without = left_out(*by_who.values())
    mean = {who: means_of_all(scores, without) for who, scores in by_who.items()}
    wanted = _wanted(metrics, list(mean["SR"]))
    for row in (*rows.values(), mean):
        for who, scores in row.items():
            row[who] = {name: scores[name] for name in wanted if name in scores}
    return {
        "scale": scale,
        "shave": protocol.shave,
        "images": rows,
        "mean": mean,
        "left_out": {name: images for name, images in without.items() if name in wanted},
        "files": {trio.name: str(trio.sr) for trio in trios},
    }


def show_scores(found: dict[str, Any]) -> None:
    """Print what `score_files` returns as tables on stdout."""
    rows = {**found["images"], f"mean of {len(found['images'])}": found["mean"]}
    console = show_tables([rows])
    show_left_out(console, found["left_out"], len(found["images"]))
    for name, file in found["files"].items():
        if Path(file).stem != Path(name).stem:
            console.print(f"{name}: {file}", soft_wrap=True)
    cropped = f"x{found['scale']}, HR cropped to a multiple of it; " if found["scale"] else ""
    console.print(
        f"{cropped}_y: BT.601 luma in 16-235; {found['shave']} pixels shaved; 8 bits",
        soft_wrap=True,
    )
    if "lr_psnr" in found["mean"]["SR"]:
        console.print("lr_psnr: PSNR of the SR, shrunk by bicubic, against the LR", soft_wrap=True)


def _scored(trio: Trio, protocol: Protocol, remarks: dict[str, str]) -> dict[str, dict[str, float]]:
    """The scores of a picture, and of bicubic enlargement when there is an LR."""
    sr, hr = (read_noting(path, remarks)[None] for path in (trio.sr, trio.hr))
    if protocol.scale:
        height, width = (side - side % protocol.scale for side in hr.shape[-2:])
        hr = hr if sr.shape[-2:] == hr.shape[-2:] else hr[..., :height, :width]
    if sr.shape[-2:] != hr.shape[-2:]:
        raise RecipeError(
            f"{trio.sr}: {_size(sr)} pixels, but {trio.hr} has {_size(hr)}"
            + (f" after cropping to a multiple of {protocol.scale}" if protocol.scale else "")
            + "; only pictures of one size can be compared"
        )
    if min(hr.shape[-2:]) < WINDOW + 2 * protocol.shave:
        raise RecipeError(
            f"{trio.hr}: too small to score with {protocol.shave} pixels cut from every side"
        )
    if trio.lr is None:
        return {"SR": _of_one(sr, hr, None, protocol, trio.name)}
    assert protocol.scale  # known from the LR pictures
    lr = read_image(trio.lr)[None]
    size = (hr.shape[-2], hr.shape[-1])
    if any(side != protocol.scale * low for side, low in zip(size, lr.shape[-2:], strict=True)):
        raise RecipeError(
            f"{trio.lr}: {_size(lr)} pixels, which x{protocol.scale} do not make the {_size(hr)} "
            f"of {trio.hr}"
        )
    with passing_matrices():
        return {
            "SR": _of_one(sr, hr, lr, protocol, trio.name),
            "bicubic": _of_one(bicubic(lr, protocol.scale), hr, lr, protocol, trio.name),
        }


def _of_one(
    image: Tensor, hr: Tensor, lr: Tensor | None, protocol: Protocol, name: str
) -> dict[str, float]:
    if hr.shape[1] == 3:
        image = image.expand(-1, 3, -1, -1)
    own = reference_scores(image, hr, protocol.shave, protocol.scale)
    if lr is not None:
        coloured = to_float(image.expand(-1, 3, -1, -1))
        again = to_uint8(resize(coloured, (lr.shape[-2], lr.shape[-1])))
        own["lr_psnr"] = psnr(again, lr, 0)
    found: list[dict[str, float | Tensor]] = [{key: value[0] for key, value in own.items()}]
    if run := protocol.run:
        sr = grey_plane(image) if hr.shape[1] == 1 else image
        run.streams.moment("evaluation", name)
        with torch.no_grad():
            found += run.hook.score_images(run=run, sr=sr, hr=hr, lr=lr)
        return numbers([merged(run, found)])[0]
    return numbers(found)[0]


def _run(recipe: Path | None, scale: int | None, lr: Path | None) -> Run | None:
    """The plugins of a recipe, ready to score."""
    if recipe is None:
        return None
    run = open_run(load_recipe(recipe), pick_device("cpu"))
    plugins = [impl for impl in run.hook.score_images.get_hookimpls() if impl.argnames]
    if not plugins:
        raise RecipeError(f"--recipe {recipe}: no plugin of it scores pictures")
    if scale is None:
        raise RecipeError("--recipe needs --scale N or --lr: its plugins cut borders of N pixels")
    if lr is None and any("lr" in impl.argnames for impl in plugins):
        raise RecipeError(f"--recipe {recipe}: a plugin of it needs LR pictures; give --lr")
    run.condition_shape, run.real_shape = (3, 8, 8), (3, 8 * scale, 8 * scale)
    return run


def _wanted(metrics: Iterable[str], known: list[str]) -> list[str]:
    for name in metrics:
        if name not in known:
            near = did_you_mean(name, known) or "; choose of " + ", ".join(known)
            why = " (it needs --lr)" if name == "lr_psnr" and name in SCORES else ""
            raise RecipeError(f"--metric {name}: not computed{why}{near}")
    return list(metrics) or known


def _scale_of(trios: list[Trio]) -> int:
    """The scale of the first pictures that can be read."""
    faults = []
    for trio in trios:
        assert trio.lr
        try:
            hr, lr = (read_image(path).shape[-1] for path in (trio.hr, trio.lr))
        except ImageError as fault:
            faults.append(fault)
        else:
            return max(1, hr // lr)
    raise faults[0]


def _trios(sr: Path, hr: Path, lr: Path | None) -> list[Trio]:
    """The pictures with their partners.

    :raises RecipeError: when a picture has no partner, or more than one.
    """
    given = {"SR": sr, "HR": hr} | ({"LR": lr} if lr else {})
    for kind, path in given.items():
        if not path.exists():
            raise RecipeError(f"{path}: no such file or folder of {kind} pictures")
    if len({path.is_dir() for path in given.values()}) > 1:
        raise RecipeError(f"{', '.join(map(str, given.values()))}: give folders only or files only")
    if not hr.is_dir():
        return [Trio(hr.name, sr, hr, lr)]
    originals = {path.relative_to(hr): path for path in listed(hr)}
    enlarged = _partners(sr, list(originals), hr)
    small = _partners(lr, list(originals), hr) if lr else {}
    return [
        Trio(str(name), enlarged[name], path, small.get(name)) for name, path in originals.items()
    ]


def _partners(folder: Path, names: list[Path], originals: Path) -> dict[Path, Path]:
    """For each original its file in a folder: of the same name, apart from usual endings."""
    keys = keys_of(names, originals)
    found: dict[Path, Path] = {}
    alone = []
    for path in listed(folder):
        forms = forms_of(path.relative_to(folder))
        # else the longest name that it begins with: a_b_ESRGAN belongs to a_b, not to a
        begins = [key for key in keys if re.match(rf"{re.escape(key)}[ _.-]", forms[0])]
        key = next((form for form in forms if form in keys), max(begins, key=len, default=""))
        if not key:
            alone.append(path)
            continue
        name = keys[key]
        if name in found:
            raise RecipeError(f"{path} and {found[name]} are both of {originals / name}; keep one")
        found[name] = path
    missing = [str(originals / name) for name in names if name not in found]
    if missing or alone:
        told = [f"{folder}: no picture for {_named(missing)}"] if missing else []
        told += [f"{originals}: no original for {_named(map(str, alone))}"] if alone else []
        raise RecipeError(
            "; ".join(told) + ". Pictures belong together when their names are equal, apart from "
            "endings such as _x4 or _SR"
        )
    return found


def keys_of(names: list[Path], originals: Path) -> dict[str, Path]:
    """The originals by name, and by their name without its endings where only one has that.

    :param names: within the folder of originals.
    :raises RecipeError: when two have one name.
    """
    keys: dict[str, Path] = {}
    for name in names:
        other = keys.setdefault(forms_of(name)[0], name)
        if other != name:
            raise RecipeError(f"{originals}: {other} and {name} have one name; rename one")
    forms = Counter(form for name in names for form in forms_of(name))
    shorter = {form: name for name in names for form in forms_of(name)[1:] if forms[form] == 1}
    return shorter | keys


def forms_of(name: Path) -> list[str]:
    """A file's name without suffix, then without its last ending, and so on."""
    stems = [name.stem]
    while (shorter := _ENDING.sub("", stems[-1])) not in ("", stems[-1]):
        stems.append(shorter)
    return [(name.parent / stem).as_posix() for stem in stems]


def _named(names: Iterable[str]) -> str:
    several = list(names)
    more = len(several) - MOST_NAMES
    return ", ".join(several[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
