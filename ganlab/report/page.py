"""A comparison as one self-contained HTML page."""

import base64
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ganlab.report.charts import Chart, curves, plane, series_of
from ganlab.report.model import Comparison, Row, Table
from ganlab.report.offline import offline_page
from ganlab.report.statistics import Interval
from ganlab.report.tables import bicubic_of
from ganlab.report.wording import decimals, shown, shown_alone
from ganlab.runs.means import means
from ganlab.runs.pictures import read_picture, read_sample
from ganlab.runs.records import RunRecord

MOST_PICTURES = 8
LARGEST_SAMPLE = (800, 800)  # pixels
SHOWN_AT_ONCE = 4  # of them; a click shows the others
Section = tuple[str, str, str, list[Chart]]  # id, title, explanation, charts
TITLES = {"lr": "LR", "bicubic": "bicubic", "hr": "original"}


def render(comparison: Comparison) -> str:
    """Render the page as UTF-8 text; equal comparisons give equal pages."""
    records = [run for arm in comparison.arms for run in arm.runs]
    pictures, samples = _pictures(comparison), _samples(comparison)
    sections = [section for section in _curves(comparison) if section[3]]
    of_plane = _plane(comparison)
    return offline_page(
        "page.html.j2",
        "page.css",
        "page.js",
        comparison=comparison,
        lead=_lead(comparison),
        contents=_contents(comparison, sections, bool(of_plane), bool(pictures), bool(samples)),
        verdicts=[(a.name, r.seed, v) for a in comparison.arms for r in a.runs for v in r.verdicts],
        watched=any(name.startswith("health/") for run in records for name in run.series),
        seeds=_seeds(comparison),
        several=len(comparison.arms) > 1,
        views=_views(comparison),
        bars={(t.view, t.figure): _bars(t) for t in comparison.tables},
        side_by_side=_side_by_side(comparison),
        shown=shown,
        shown_alone=shown_alone,
        shown_at_once=SHOWN_AT_ONCE,
        slides_open=False,
        size=lambda value: "" if value is None else f"{value:.{decimals(value)}f}",
        look=look,
        arm_names=[arm.name for arm in comparison.arms],
        with_bicubic=any(run.bicubic for run in records),
        plane=of_plane,
        plane_ideal=_ideal(comparison),
        curves=sections,
        pictures=pictures,
        samples=samples,
        recipes=[(arm.name, _recipe(arm.runs[0])) for arm in comparison.arms],
        environment=list(_environment(comparison)),
        folders=[(a.name, r.seed, r.folder.path, r.state) for a in comparison.arms for r in a.runs],
    )


def look(arm: int) -> str:
    """The CSS class of an arm's colour and dashes: seven, then the same with other dashes."""
    return "bicubic" if arm < 0 else f"arm{arm % 7}" + (" again" if arm > 6 else "")


def _lead(comparison: Comparison) -> str:
    """One sentence with the outcome: the first figure of the first view."""
    if len(comparison.arms) == 1:
        return _of_one_run(comparison.arms[0].runs[0])
    if not comparison.tables:
        return "No run has been evaluated yet."
    table = comparison.tables[0]
    parts = [
        f"{row.arm}: {row.words}" + (f" ({shown(row.difference, True)})" if row.difference else "")
        for row in table.rows[1:]
    ]
    return f"{table.figure} against {comparison.arms[0].name}: {'; '.join(parts)}."


def _of_one_run(record: RunRecord) -> str:
    status = record.status
    where = f"iteration {status.get('iteration', 0):,} of {record.recipe['iterations']:,}"
    parts = [f"Seed {record.seed}, {record.state} at {where}."]
    if record.ended_early:
        parts.append(f"It {record.ended_early}.")
    for name, found in (("Last", record.last), ("Best", record.best)):
        metric = record.recipe["best_metric"]
        if found and metric in found.figures:
            parts.append(f"{name}: {metric} {found.figures[metric]:.4g} at {found.iteration:,}.")
    return " ".join(parts)


def _contents(
    comparison: Comparison,
    sections: Sequence[Section],
    of_plane: bool,
    pictures: bool,
    samples: bool,
) -> list[tuple[str, str]]:
    found = [("pictures", "Crops")] if pictures else []
    found += [("samples", "Samples")] if samples else []
    found += [("scores", "Scores")]
    found += [("images", "Image by image")] if comparison.images else []
    found += [("plane", "Distortion and detail")] if of_plane else []
    found += [(section[0], section[1]) for section in sections]
    return [*found, ("health", "Health"), ("recipes", "Recipes"), ("environment", "Environment")]


def _seeds(comparison: Comparison) -> str:
    counts = sorted({len(arm.runs) for arm in comparison.arms})
    numbers = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{numbers} seed{'' if counts[-1] == 1 else 's'}"


def _views(comparison: Comparison) -> list[tuple[str, list[Table]]]:
    views: dict[str, list[Table]] = {}
    for table in comparison.tables:
        views.setdefault(table.view, []).append(table)
    return list(views.items())


def _side_by_side(comparison: Comparison) -> list[tuple[Table, list[Interval | None]]]:
    """Each figure of the first arm, with its value in every view."""
    views = _views(comparison)
    values = {(t.view, t.figure): t.rows[0].value for t in comparison.tables}
    first = views[0][1] if views else []
    return [(t, [values.get((view, t.figure)) for view, _ in views]) for t in first]


def _bars(table: Table) -> list[dict[str, float] | None]:
    """Each row's interval of the difference, and zero, as places in a box of width 120."""

    def ends(row: Row) -> list[float]:
        d = row.difference
        return [d.low, d.high] if d and d.low is not None and d.high is not None else []

    values = [0.0, *(end for row in table.rows for end in ends(row))]
    low, high = min(values), max(values)
    if low == high:
        return [None] * len(table.rows)

    def place(value: float) -> float:
        return round(4 + 112 * (value - low) / (high - low), 1)

    return [
        {
            "zero": place(0),
            "low": place(row.difference.low),
            "high": place(row.difference.high),
            "mean": place(row.difference.mean),
        }
        if row.difference and row.difference.low is not None and row.difference.high is not None
        else None
        for row in table.rows
    ]


def _curves(comparison: Comparison) -> Iterator[Section]:
    """Sections of learning curves."""
    records = [run for arm in comparison.arms for run in arm.runs]
    logged = list(dict.fromkeys(name for run in records for name in run.series))
    figures = dict.fromkeys(n for run in records for e in run.evaluations for n in e.figures)
    evaluated = [f"evaluation/{name}" for name in figures]

    def charts(names: Sequence[str], kind: str = "") -> list[Chart]:
        found = []
        for name in names:
            of_arms = [
                [s for run in arm.runs if (s := series_of(run, name))] for arm in comparison.arms
            ]
            prefix, _, rest = name.partition("/")
            title = name if prefix in ("D", "G") else f"{kind} {rest}".strip()
            level = None
            if prefix == "evaluation":
                level = bicubic_of(comparison.arms, rest, lambda record: record.last)
            found.append(curves(title, "", comparison.arms, of_arms, level))
        return [chart for chart in found if chart]

    def prefixed(*prefixes: str) -> list[str]:
        return [name for name in logged if name.startswith(prefixes)]

    thin = "Thin lines are seeds; the bold line is their mean. " if len(records) > 1 else ""
    yield "curves", "Scores over training", f"{thin}Measured on held-out images.", charts(evaluated)
    yield (
        "losses",
        "Losses",
        f"{thin}As logged, with their weights applied.",
        charts(prefixed("D/", "G/")),
    )
    yield (
        "gradients",
        "Gradient of each loss",
        "The norm of each loss's gradient on its own network, before the step; its share of the "
        "sum of norms; and the cosine between the gradients of two losses: 1 when they have the "
        "same direction, -1 when they are opposite.",
        charts(prefixed("gradient/"), "norm of")
        + charts(prefixed("share/"), "share of")
        + charts(prefixed("cosine/"), "cosine of"),
    )
    yield (
        "monitors",
        "Health monitors",
        "update: |step| / |weights|. accuracy: of D's decisions, where the sign of a logit is one. "
        "saturation: share of logits of which D is 99 % sure. spread: how much G's images vary, as "
        "a multiple of the real images' variation. held_out_gap: 0 when D judges unseen images "
        "like the ones it trains on.",
        charts(prefixed("health/")),
    )


def _detail(comparison: Comparison) -> str:
    """The figure for perception: `best_metric`, or fine detail if that one measures distortion."""
    chosen = str(comparison.arms[0].runs[0].recipe["best_metric"])
    return "hf_ratio" if chosen.startswith(("psnr", "ssim", "lr_psnr")) else chosen


def _ideal(comparison: Comparison) -> str:
    of_detail = _detail(comparison) == "hf_ratio"
    return "1 means as much fine detail as in the originals" if of_detail else ""


def _plane(comparison: Comparison) -> Chart | None:
    """Chart of distortion and perception (Blau and Michaeli 2018, arXiv:1711.06077)."""
    detail = _detail(comparison)
    points = []
    for number, arm in enumerate(comparison.arms):
        lasts = [e.figures for run in arm.runs if (e := comparison.chosen(run))]
        both = [f for f in lasts if _finite(f, "psnr_y") and _finite(f, detail)]
        xs, ys = [_rmse(f["psnr_y"]) for f in both], [f[detail] for f in both]
        points.append((number, arm.name, xs, ys))
    every = [run for arm in comparison.arms for run in arm.runs]
    bicubic = next((found for run in every if (found := means(run.bicubic))), {})
    if _finite(bicubic, "psnr_y") and _finite(bicubic, detail):
        points.append((-1, "bicubic", [_rmse(bicubic["psnr_y"])], [bicubic[detail]]))
    label = "fine detail (SR / HR)" if detail == "hf_ratio" else detail
    return plane("Distortion and perception", ("RMSE of luma, grey levels", label), points)


def _rmse(psnr: float) -> float:
    # a record may hold any number; beyond these the power is no float
    return 255 / float(10 ** (min(max(psnr, -6000), 6000) / 20))


def _finite(figures: dict[str, Any], name: str) -> bool:
    return isinstance(figures.get(name), float) and math.isfinite(figures[name])


@dataclass(frozen=True, slots=True)
class Cell:
    title: str
    data: str
    score: str
    pixelated: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """The crops of one image, side by side; the slider begins with cells `left` and `right`."""

    name: str
    width: int
    height: int
    cells: list[Cell]
    left: int
    right: int


def _pictures(comparison: Comparison) -> list[Picture]:
    base = comparison.arms[0].runs[0]
    rows = comparison.images.rows if comparison.images else ()
    order = {row.image: at for at, row in enumerate(rows)}
    numbered = sorted(enumerate(base.crops), key=lambda pair: order.get(pair[1].name, len(order)))
    found = []
    for number, crop in numbered[:MOST_PICTURES]:
        figure = comparison.images.figure if comparison.images else "psnr_y"
        cells = [_cell(base, number, kind, TITLES[kind], "") for kind in ("lr", "bicubic")]
        if _finite(base.bicubic.get(crop.name, {}), figure):
            bicubic = f"{figure} {base.bicubic[crop.name][figure]:.2f}"
            cells[1] = _cell(base, number, "bicubic", "bicubic", bicubic)
        for arm in comparison.arms:
            run = arm.runs[0]
            if crop in run.crops:  # the same pixels of the same image
                score = run.last.images.get(crop.name, {}).get(figure) if run.last else None
                text = f"{figure} {score:.2f}" if score is not None else ""
                cells.append(_cell(run, run.crops.index(crop), "sr", arm.name, text))
        cells.append(_cell(base, number, "hr", TITLES["hr"], ""))
        whole = [cell for cell in cells if cell]
        # the baseline and the last arm; for a single run, bicubic and that run
        right = len(whole) - 2
        left = min(right - 1, 2 if len(comparison.arms) > 1 else 1)
        found.append(Picture(crop.name, crop.width, crop.height, whole, max(left, 0), right))
    return [picture for picture in found if len(picture.cells) > 2]


def _samples(comparison: Comparison) -> list[Cell]:
    """The last picture of each arm's first run, where no crops are kept: of a toy problem."""
    firsts = [(arm.name, arm.runs[0]) for arm in comparison.arms if not arm.runs[0].crops]
    found = [(name, read_sample(run.folder.samples, LARGEST_SAMPLE)) for name, run in firsts]
    return [Cell(name, base64.b64encode(data).decode(), "") for name, data in found if data]


def _cell(run: RunRecord, number: int, kind: str, title: str, score: str) -> Cell | None:
    data = read_picture(run.folder.pictures, run.crops[number], number, kind)
    if data is None:
        return None
    return Cell(title, base64.b64encode(data).decode(), score, kind == "lr")


def _recipe(record: RunRecord) -> str:
    try:
        return record.folder.recipe.read_text(encoding="utf-8")
    except OSError:
        return json.dumps(record.recipe, indent=2)


def _environment(comparison: Comparison) -> Iterator[tuple[str, str, bool]]:
    """What results depend on besides the recipe: title, values, whether the runs differ in it."""
    manifests = [run.manifest for arm in comparison.arms for run in arm.runs]
    for title, values in (*_tables_of(manifests, "versions"), *_entries(manifests)):
        distinct = list(dict.fromkeys(values))
        yield title, ", ".join(distinct), len(distinct) > 1


_ENTRIES = {
    "device_name": "device",
    "platform": "platform",
    "threads": "CPU threads",
    "git_commit": "git commit",
    "code": "sha256 of ganlab's code",
}


def _entries(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    for key, title in _ENTRIES.items():
        found = [manifest.get(key) for manifest in manifests]
        yield title, ["unknown" if value is None else str(value) for value in found]
    for name, entries in _tables_of(manifests, "plugins", "sha256"):
        yield f"sha256 of plugin {name}", entries


def _tables_of(
    manifests: list[dict[str, Any]], table: str, key: str = ""
) -> Iterator[tuple[str, list[str]]]:
    """Each name in a table of the manifests, with its values in the manifests that have it."""
    for name in dict.fromkeys(name for manifest in manifests for name in manifest.get(table, {})):
        found = [m[table][name] for m in manifests if name in m.get(table, {})]
        yield name, [str(value[key] if key else value) for value in found]
