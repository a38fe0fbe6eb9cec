"""The rules by which a history gets its verdicts, each with its nearest miss."""

import pytest

from ganlab.monitoring.verdicts import History, Verdict, find_verdicts

HEALTHY = {
    "D/real_logits": 2.0,
    "D/fake_logits": -2.0,
    "gradient/G/adversarial": 0.5,
    "health/G_update": 1e-3,
    "health/D_update": 1e-2,
    "health/saturation": 0.5,
    "health/spread": 0.95,
    "health/held_out_gap": 0.5,
    "health/trained_accuracy": 1.0,
    "health/checkerboard": 0.8,
    "evaluation/lr_psnr": 40.0,
    "evaluation/hf_ratio": 0.9,
}


def history(*parts: tuple[int, dict[str, float]]) -> History:
    """Healthy lines with some figures changed: (how many lines, what is different in them)."""
    made = History()
    for count, changes in parts:
        for _ in range(count):
            made.add(10 * (len(made.lines) + 1), HEALTHY | changes)
    return made


def verdicts(*parts: tuple[int, dict[str, float]]) -> dict[str, Verdict]:
    return {verdict.name: verdict for verdict in find_verdicts(history(*parts))}


def test_a_healthy_history_gets_no_verdict() -> None:
    assert verdicts((30, {})) == {}
    assert list(find_verdicts(History())) == []


def test_lines_that_tell_nothing_of_health_are_not_kept() -> None:
    made = History()
    made.add(1, {"D/adversarial": 1.0})
    made.add(2, {"D/adversarial": 1.0, "gradient/D/adversarial": 0.1})
    assert [iteration for iteration, _ in made.lines] == [2]


@pytest.mark.parametrize(
    ("changes", "count", "name", "words"),
    [
        ({"D/real_logits": -1001.0}, 3, "exploded", "its mean logits reached 1e+03"),
        ({"health/G_update": 0.5}, 3, "exploded", "G exploded from iteration 210: each step"),
        ({"health/D_update": 0.31}, 3, "exploded", "each step changes its weights by 31%"),
        ({"health/G_update": 1e-9}, 5, "static", "G stands still from iteration 210"),
        ({"health/D_update": 1e-9}, 5, "static", "D stands still from iteration 210"),
        (
            {"health/G_update": 0.0, "gradient/G/adversarial": 0.0},
            5,
            "static",
            "G stands still from iteration 210",
        ),
        ({"health/spread": 0.05}, 2, "collapsed", "vary 0.05 times as much"),
        ({"evaluation/lr_psnr": 19.9}, 2, "drifted", "only 19.9 dB against"),
        ({"evaluation/hf_ratio": 8.1}, 2, "noisy", "8.1 times the fine detail"),
        ({"health/checkerboard": 4.1}, 2, "checkerboard", "4 times the power"),
        ({"health/held_out_gap": 0.8}, 3, "memorised", "between real and fake is 80% smaller"),
    ],
)  # fmt: skip
def test_a_failure_that_lasts_gets_its_verdict_and_one_that_does_not_gets_none(
    changes: dict[str, float], count: int, name: str, words: str
) -> None:
    found = verdicts((20, {}), (count, changes))
    assert found.keys() == {name}
    assert found[name].since == 210
    assert words in found[name].sentence
    assert verdicts((20, {}), (count - 1, changes)) == {}
    assert verdicts((20, {}), (count, changes), (1, {})) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"D/real_logits": 999.0},
        {"health/G_update": 0.29},
        {"health/G_update": 1.1e-8},
        {"health/G_update": 0.0},  # under a gradient: the learning rate is 0
        {"health/spread": 0.11},
        {"evaluation/lr_psnr": 20.1},
        {"evaluation/hf_ratio": 7.9},
        {"health/checkerboard": 3.9},
        {"health/checkerboard": 7.9, "evaluation/hf_ratio": 2.0},
        {"health/held_out_gap": 0.74},
        {"health/held_out_gap": 0.99, "health/trained_accuracy": 0.94},
        {"health/saturation": 0.84, "gradient/G/adversarial": 0.01},
        {"health/saturation": 1.0, "gradient/G/adversarial": 0.06},
    ],
)
def test_what_is_just_short_of_a_threshold_gets_no_verdict(changes: dict[str, float]) -> None:
    assert verdicts((20, {}), (20, changes)) == {}


def test_a_saturated_discriminator_is_told_with_its_logits_and_the_fall_of_the_gradient() -> None:
    won = {
        "D/real_logits": 9.0,
        "D/fake_logits": -8.0,
        "health/saturation": 0.99,
        "gradient/G/adversarial": 0.0125,
    }
    (found,) = verdicts((20, {}), (7, won)).values()
    # the first five in a row of which most are sure begin two before
    assert found.since == 190
    assert found.sentence == (
        "D saturated from iteration 190: logits beyond 8, generator gradient fell 40-fold"
    )


def test_a_discriminator_that_wins_at_once_is_held_against_the_beginning_of_the_game() -> None:
    won = {"health/saturation": 1.0, "gradient/G/adversarial": 1e-4}
    assert verdicts((1, {}), (9, won)).keys() == {"saturated"}


@pytest.mark.parametrize(
    ("figure", "values"),
    [
        ("evaluation/lr_psnr", [11.0, 13.0, 15.0, 18.0]),
        ("health/spread", [0.01, 0.03, 0.08]),
        ("health/checkerboard", [40.0, 20.0, 9.0]),
        ("evaluation/hf_ratio", [30.0, 12.0, 9.0]),
    ],
)
def test_a_generator_that_is_still_learning_does_not_fail_but_one_that_stops_does(
    figure: str, values: list[float]
) -> None:
    learning = [(1, {figure: value}) for value in values]
    assert verdicts(*learning) == {}
    assert len(verdicts(*learning, (1, {figure: values[-1]}))) == 1
    assert len(verdicts(*learning[::-1])) == 1


def test_one_odd_batch_does_not_hide_a_saturated_discriminator() -> None:
    won = {"health/saturation": 1.0, "gradient/G/adversarial": 0.001}
    odd = {"health/saturation": 0.0, "gradient/G/adversarial": 5.0}
    assert verdicts((20, {}), (4, won), (1, odd), (2, won)).keys() == {"saturated"}


def test_a_gradient_that_is_gone_is_no_division_by_zero() -> None:
    won = {"health/saturation": 1.0, "gradient/G/adversarial": 0.0}
    (found,) = verdicts((20, {}), (9, won)).values()
    assert "fell inf-fold" in found.sentence


def test_a_figure_that_was_not_finite_is_passed_over() -> None:
    assert verdicts((20, {}), (3, {"D/real_logits": float("nan")})) == {}


@pytest.mark.parametrize(
    ("name", "failing", "confirming", "no", "count"),
    [
        ("checkerboard", {"health/checkerboard": 5.0}, "evaluation/hf_ratio", 2.0, 2),
        ("memorised", {"health/held_out_gap": 0.8}, "health/trained_accuracy", 0.5, 3),
    ],
)
def test_the_last_values_must_be_confirmed_without_a_break(
    name: str, failing: dict[str, float], confirming: str, no: float, count: int
) -> None:
    unconfirmed = (1, failing | {confirming: no})
    assert verdicts((count, failing), unconfirmed, (count - 1, failing)) == {}
    found = verdicts((count, failing), unconfirmed, (count, failing))
    assert found[name].since == 10 * (count + 2)
