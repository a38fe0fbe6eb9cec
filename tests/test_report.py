"""The page: whole, offline, and safe whatever its texts say."""

import base64
import json
import math
import re
import shutil
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pages import Page, check_policy, links
from PIL import Image

from ganlab.errors import RecipeError
from ganlab.report import report_run, write_report
from ganlab.report.charts import BOTTOM, HEIGHT, LEFT, MOST_POINTS, TOP, Axis, curves, number, plane
from ganlab.report.model import Arm, Comparison
from ganlab.report.page import render
from ganlab.report.statistics import Interval
from ganlab.report.tables import bicubic_of, compare
from ganlab.report.wording import shown, shown_alone
from ganlab.runs.records import RunRecord, Series, read_run


@pytest.fixture(scope="module")
def page(compared: Path) -> Page:
    return Page((compared / "page.html").read_text(encoding="utf-8"))


def test_the_one_script_and_the_one_style_sheet_are_those_that_the_policy_names(page: Page) -> None:
    check_policy(page)


def test_no_attribute_runs_anything_or_leads_elsewhere(page: Page) -> None:
    assert {link[0] for link in links(page)} == {"#"}


def test_hostile_text_is_text(page: Page) -> None:
    for nasty in (
        "<img src=x onerror=alert(1)>",
        "<script>alert(2)<script>",
        "<img src=x onerror=alert(3)>figure",
        "G/<img src=x onerror=alert(3)>",
        "</script><script>alert(1)</script>--> ]]> {{7*7}} javascript:alert(1)",
        'it\'s "b" & {{7*7}}',
    ):
        assert nasty in page.text, nasty
    assert "& 49" not in page.text


def test_marks_that_turn_the_writing_direction_are_shown_and_not_obeyed(page: Page) -> None:
    assert "\\u202e" in page.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", page.text)


def test_the_terminal_shows_hostile_names_as_they_are(compared: Path) -> None:
    output = (compared / "output.txt").read_text()
    assert "<img src=x onerror=alert(1)>" in output
    assert "no measurable effect" in output or "better" in output or "worse" in output


def test_every_section_that_the_contents_name_is_there(page: Page) -> None:
    links = {a["href"] or "" for t, a in page.tags if t == "a"}
    ids = {f"#{a['id']}" for t, a in page.tags if t == "section"}
    assert links == ids
    assert {"#health", "#scores", "#curves", "#losses", "#gradients", "#monitors", "#images",
            "#pictures", "#recipes", "#environment", "#plane"} <= ids  # fmt: skip


def test_a_page_begins_with_crops_then_scores_then_curves(page: Page) -> None:
    sections = [a["id"] for t, a in page.tags if t == "section"]
    assert sections == [
        "pictures", "scores", "images", "plane", "curves", "losses", "gradients", "monitors",
        "health", "recipes", "environment",
    ]  # fmt: skip


def test_bicubic_stands_beside_the_figures_of_a_run_and_of_a_comparison(compared: Path) -> None:
    record = read_run(compared / "runs" / "plain-1")
    mean = record.status["bicubic"]["psnr_y"]
    comparison = compare("one", [Arm("one", (record,))])
    assert {t.view for t in comparison.tables} == {
        "last checkpoint, 12 iterations", f"best checkpoint, {record.best.iteration} iterations"
    }  # fmt: skip
    assert comparison.tables[0].bicubic == pytest.approx(mean)
    text = re.sub(r"\s+", " ", Page(render(comparison)).text)
    psnr = record.last.figures["psnr_y"]
    assert f"psnr_y ↑{shown_alone(mean)}{shown_alone(psnr)}" in text.replace("\xa0", " ")
    assert re.search(f"bicubic +{shown_alone(mean)}", (compared / "output.txt").read_text())
    both = compare("two", [Arm("one", (record,)), Arm("two", (record,))])
    assert f"bicubic{shown_alone(mean)}" in Page(render(both)).text


def test_bicubic_of_another_degradation_stands_beside_no_mean(compared: Path) -> None:
    record = read_run(compared / "runs" / "plain-1")
    other = {image: scores | {"psnr_y": 20.0} for image, scores in record.bicubic.items()}
    arms = [Arm("one", (record,)), Arm("two", (replace(record, bicubic=other),))]
    assert bicubic_of(arms[1:], "psnr_y", lambda r: r.last) == 20
    assert bicubic_of(arms, "psnr_y", lambda r: r.last) is None
    assert bicubic_of(arms, "ssim_y", lambda r: r.last) is not None
    assert bicubic_of(arms, "nothing", lambda r: r.last) is None


def test_every_chart_of_a_score_of_images_has_the_line_of_bicubic(page: Page) -> None:
    lines = [a for t, a in page.tags if t == "line" and a["class"] == "level bicubic"]
    assert len(lines) == 6  # PSNR and SSIM of luma and of RGB, hf_ratio, lr_psnr


def test_a_level_line_lies_inside_its_chart_also_where_the_curve_is_far() -> None:
    chart = curves("x", "", [Arm("a", ())], [[series([10, 11])]], 30)
    assert chart
    assert chart.bicubic
    assert TOP < chart.bicubic.y < HEIGHT - BOTTOM
    assert chart.bicubic.y < chart.lines[0].marks[0].y  # higher on the page


def test_a_run_with_one_evaluation_is_a_point_that_is_seen(compared: Path) -> None:
    record = read_run(compared / "runs" / "plain-1")
    one, two = (replace(record, evaluations=record.evaluations[:n]) for n in (1, 2))

    def points(*runs: RunRecord) -> list[str]:
        page = Page(render(compare("x", [Arm("x", runs)])))
        of_curves = page.tags[page.tags.index(("section", {"id": "curves"})) :]
        return [a["r"] or "" for t, a in of_curves if t == "circle" and a["class"] == "dot arm0"]

    figures = len(record.evaluations[0].figures)
    assert points(one) == ["5"] * figures
    assert points(two) == []
    assert sorted(points(one, one)) == ["3"] * 2 * figures + ["5"] * figures
    seeds_differ = sorted(points(one, two))
    assert seeds_differ == ["3"] * figures + ["5"] * figures  # their mean is one point too


def test_a_page_without_crops_begins_with_the_newest_sample(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(compared / "runs" / "plain-1", tmp_path / "toy-1")
    shutil.rmtree(run / "pictures")
    Image.new("RGB", (40, 30), "red").save(run / "samples" / "0000099.png")
    page = Page(report_run(run).read_text(encoding="utf-8"))
    assert next(a["id"] for t, a in page.tags if t == "section") == "samples"
    (picture,) = (a for t, a in page.tags if t == "img")
    image = Image.open(BytesIO(base64.b64decode((picture["src"] or "").partition(",")[2])))
    assert (image.size, image.getpixel((0, 0))) == ((40, 30), (255, 0, 0))
    (run / "samples" / "0000100.png").write_text("no picture")
    assert not [t for t, _ in Page(report_run(run).read_text(encoding="utf-8")).tags if t == "img"]
    assert "0000100.png: left out of the page: cannot be read as a PNG" in capsys.readouterr().err


def test_many_crops_do_not_hide_the_scores(compared: Path, tmp_path: Path) -> None:
    run = shutil.copytree(compared / "runs" / "plain-1", tmp_path / "many-1")
    index = run / "pictures" / "index.json"
    crops = json.loads(index.read_text())
    for at in range(len(crops), 6):
        crops.append(crops[0] | {"name": f"image {at}"})
        for kind in ("lr", "bicubic", "sr", "hr"):
            shutil.copy(index.with_name(f"00-{kind}.png"), index.with_name(f"{at:02}-{kind}.png"))
    index.write_text(json.dumps(crops))
    text = report_run(run).read_text(encoding="utf-8")
    before, _, folded = text.partition('<details class="more"><summary>2 more images</summary>')
    assert before.count('<article class="crop">') == 4
    assert folded[: folded.index('id="scores"')].count('<article class="crop">') == 2
    page = Page(text)
    opened = [tag for tag, _ in page.tags if tag == "details"]
    assert text.count("</details>") == len(opened)


def test_a_toy_problem_has_no_column_for_bicubic(compared: Path) -> None:
    record = read_run(compared / "runs" / "plain-1")
    page = render(compare("x", [Arm("x", (replace(record, bicubic={}, crops=[]),))]))
    assert 'scope="col">bicubic' not in page[: page.index('id="images"')]


def test_a_verdict_stands_at_the_head_of_a_page(compared: Path) -> None:
    record = read_run(compared / "runs" / "plain-1")
    verdict = {"iteration": 4, "name": "dead", "since": 2, "sentence": "D is dead.", "action": "-"}
    page = render(compare("x", [Arm("x", (replace(record, verdicts=[verdict]),))]))
    head = page[: page.index("<main>")]
    assert 'D is dead. <a href="#health">Verdict on failed training</a>' in head


def test_headings_come_in_order_and_every_picture_has_a_text(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    pictures = [attributes for tag, attributes in page.tags if tag == "img" and "src" in attributes]
    assert len(pictures) == 2 * 5  # LR, bicubic, two recipes, original
    assert all(picture["alt"] for picture in pictures)


def test_each_picture_is_in_the_page_once(compared: Path, page: Page) -> None:
    sources = [a["src"] for t, a in page.tags if t == "img" and "src" in a]
    assert len(set(sources)) == len(sources)
    kept = (compared / "runs" / "plain-1" / "pictures" / "00-sr.png").read_bytes()
    assert any(base64.b64decode((s or "").partition(",")[2]) == kept for s in sources)


def test_the_page_of_a_comparison_repeats_to_the_byte(compared: Path) -> None:
    runs = tuple(read_run(path) for path in sorted((compared / "runs").glob("plain-*")))
    comparison = Comparison("again", (Arm("plain", runs),))
    assert render(comparison) == render(comparison)


def test_a_run_has_a_page_of_its_own(compared: Path) -> None:
    run = sorted((compared / "runs").glob("plain-*"))[0]
    assert (run / "report.html").is_file()
    page = Page(report_run(run).read_text(encoding="utf-8"))
    assert "Seed 0, done at iteration 12 of 12." in page.text
    assert "No verdict" in page.text
    assert "visible from" not in page.text


def test_verdicts_head_the_page(compared: Path) -> None:
    run = sorted((compared / "runs").glob("<img*"))[0]
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "G is ill<img src=x onerror=alert(3)>" in page.text
    assert "No verdict" not in page.text


def test_a_file_that_is_no_page_of_ours_is_not_overwritten(compared: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.html"
    thesis.write_text("years of work")
    runs = tuple(read_run(path) for path in sorted((compared / "runs").glob("plain-*")))
    with pytest.raises(RecipeError, match="not a page from ganlab"):
        write_report(Comparison("x", (Arm("plain", runs),)), thesis)
    assert thesis.read_text() == "years of work"


def test_a_run_that_was_never_evaluated_has_a_page_too(compared: Path, tmp_path: Path) -> None:
    run = sorted((compared / "runs").glob("plain-*"))[0]
    for name in ("recipe.toml", "manifest.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    page = Page(report_run(tmp_path).read_text(encoding="utf-8"))
    assert "The runs were not watched" in page.text


# --- charts --------------------------------------------------------------------------------------


def series(values: list[float], first: int = 1) -> Series:
    return Series(np.arange(first, first + len(values)), np.array(values, float))


def test_an_axis_puts_numbers_in_proportion_and_ticks_at_round_ones() -> None:
    axis = Axis([0.0, 10.0], 0, 108)
    assert axis(0) == pytest.approx(4, abs=0.1)
    assert axis(10) - axis(0) == pytest.approx(100, abs=0.2)
    assert [tick.text for tick in axis.ticks()] == ["0", "2", "4", "6", "8", "10"]
    log = Axis([0.01, 100.0], 0, 100, log=True)
    assert log(1.0) == pytest.approx(50, abs=0.1)
    assert [tick.text for tick in log.ticks()] == ["0.01", "0.1", "1", "10", "100"]


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0], [0.0, 0.0], [-3.0], [27.95, 27.95001]])
def test_values_that_are_equal_but_for_rounding_lie_in_the_middle(values: list[float]) -> None:
    axis = Axis(values, 0, 100)
    assert axis(values[0]) == pytest.approx(50, abs=0.1)
    assert axis.ticks()


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([27.9501, 27.9519], ["27.9505", "27.951", "27.9515"]),
        ([-1e-7, 1e-7], ["-1e-7", "-5e-8", "0", "5e-8", "1e-7"]),
        ([0.1, 0.3], ["0.1", "0.15", "0.2", "0.25", "0.3"]),
        ([999.9, 1000.3], ["999.9", "1,000", "1000.1", "1000.2", "1000.3"]),
    ],
)
def test_ticks_of_values_that_lie_close_together_differ(
    values: list[float], texts: list[str]
) -> None:
    assert [tick.text for tick in Axis(values, 0, 100).ticks()] == texts


def test_the_bold_line_is_the_mean_over_seeds() -> None:
    chart = curves("x", "", [Arm("a", ())], [[series([1, 2, 3]), series([3, 4, 5])]])
    assert chart
    seeds, bold = [line for line in chart.lines if not line.bold], chart.lines[-1]
    assert len(seeds) == 2
    low, high, mean = (
        np.array([[float(n) for n in pair.split(",")] for pair in line.path.split()])
        for line in (*seeds, bold)
    )
    assert np.allclose(mean, (low + high) / 2, atol=0.1)
    assert bold.marks[0].text == "a, iteration 3: 4"


def test_a_long_curve_is_thinned_to_means_and_keeps_its_ends() -> None:
    chart = curves("x", "", [Arm("a", ())], [[series([float(i % 2) for i in range(10_000)])]])
    assert chart
    (line,) = chart.lines
    assert len(line.path.split()) <= MOST_POINTS
    middle = (TOP + HEIGHT - BOTTOM) / 2
    heights = [float(pair.split(",")[1]) for pair in line.path.split()]
    assert np.allclose(heights, middle, atol=2)


def test_what_is_not_finite_is_left_out_of_a_curve() -> None:
    chart = curves("x", "", [Arm("a", ())], [[series([1.0, math.nan, 3.0])]])
    assert chart
    assert len(chart.lines[0].path.split()) == 2
    assert curves("x", "", [Arm("a", ())], [[series([math.nan])]]) is None
    assert curves("x", "", [Arm("a", ())], [[]]) is None


def test_values_over_many_orders_are_drawn_on_a_logarithmic_axis() -> None:
    chart = curves("x", "", [Arm("a", ())], [[series([1e-4, 1e-2, 1.0])]])
    assert chart
    heights = [float(pair.split(",")[1]) for pair in chart.lines[0].path.split()]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


def test_the_plane_has_whiskers_where_there_are_seeds_and_none_for_one() -> None:
    points = [(0, "a", [1.0, 2.0, 3.0], [5.0, 5.0, 8.0]), (-1, "bicubic", [4.0], [0.0])]
    chart = plane("p", ("x", "y"), points)
    assert chart
    ours, bicubic = chart.whiskers
    assert ours.horizontal
    assert ours.vertical
    assert ours.horizontal[0] < ours.mark.x < ours.horizontal[1]
    assert bicubic.mark.x > LEFT
    assert bicubic.horizontal is bicubic.vertical is None
    assert plane("p", ("x", "y"), [(0, "a", [], [])]) is None


@pytest.mark.parametrize(
    ("found", "signed", "text"),
    [
        (Interval(28.2114, 28.15, 28.27, 5, "t"), False, "28.211 [28.150, 28.270]"),
        (Interval(0.5, 0.2, 0.8, 5, "t"), True, "+0.50 [+0.20, +0.80]"),
        (Interval(28.2114, None, None, 1, ""), False, "28.21"),
        (Interval(-0.25, None, None, 1, ""), True, "-0.250"),
        (Interval(0, 0, 0, 5, "t"), True, "+0.00 [+0.00, +0.00]"),
        (None, False, "-"),
    ],
)
def test_an_interval_as_text(found: Interval | None, signed: bool, text: str) -> None:
    assert shown(found, signed) == text


def test_numbers_for_people() -> None:
    shown = [number(v) for v in (1000, 12345, 2e6, -3.5e7, 0.125, 1e-5)]
    assert shown == ["1,000", "12,345", "2e6", "-3.5e7", "0.125", "1e-5"]


def test_a_name_that_is_no_text_does_not_end_a_page(compared: Path) -> None:
    """A file name that is not UTF-8 comes as lone surrogates."""
    record = read_run(next((compared / "runs").glob("plain-*")))
    page = render(compare("\udcff", [Arm("caf\udce9", (replace(record, crops=[]),))]))
    page.encode()
    assert "caf\\udce9" in page


def test_the_eighth_arm_looks_other_than_the_first(compared: Path) -> None:
    record = read_run(next((compared / "runs").glob("plain-*")))
    page = render(compare("many", [Arm(f"arm {n}", (record,)) for n in range(9)]))
    assert page.count('class="sample arm0"') == page.count('class="sample arm0 again"') > 0
