"""Schedules and the plugin base class."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl, hookspecs
from ganlab.recipe.model import load_recipe
from ganlab.requirements import register


class Scaled(Plugin):
    """A plugin for these tests."""

    weight: NonNegativeSchedule = Schedule.constant(2.0)
    """How much."""


def test_a_number_is_a_constant_schedule() -> None:
    schedule = Schedule.constant(0.3)
    assert not schedule.moves
    assert [schedule.at(i) for i in (0, 7, 10**6)] == [0.3, 0.3, 0.3]


def test_a_linear_schedule_starts_moves_and_stays() -> None:
    schedule = Schedule.model_validate({"from": 1.0, "to": 0.0, "over": 4, "after": 2})
    assert [schedule.at(i) for i in (0, 2, 3, 4, 6, 9)] == [1.0, 1.0, 0.75, 0.5, 0.0, 0.0]


def test_a_cosine_schedule_is_half_way_at_half_time() -> None:
    schedule = Schedule.model_validate({"from": 1.0, "to": 0.0, "over": 10, "shape": "cosine"})
    assert schedule.at(5) == pytest.approx(0.5)
    assert schedule.at(2) == pytest.approx((1 + torch.cos(torch.tensor(0.2 * torch.pi))) / 2)


def test_the_value_is_refilled_in_place_and_promotes_nothing() -> None:
    schedule = Schedule.model_validate({"from": 1.0, "to": 0.0, "over": 4})
    value = schedule.value
    schedule.advance(1)
    assert schedule.value is value
    assert value.item() == 0.75
    assert (value * torch.ones(2)).dtype == torch.float32
    assert (value * torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_two_plugins_never_share_a_default_schedule() -> None:
    assert Scaled().weight is not Scaled().weight
    assert Scaled().weight.value is not Scaled().weight.value


@pytest.mark.parametrize("weight", [-1, {"from": 1, "to": -1}, "2", True, float("nan")])
def test_a_wrong_weight_is_refused(weight: object) -> None:
    with pytest.raises(ValidationError):
        Scaled(weight=weight)  # type: ignore[arg-type]


def test_plugins_with_equal_options_are_still_two_plugins() -> None:
    one, other = Scaled(), Scaled()
    assert one != other
    assert len({one, other}) == 2


def test_a_plugin_outside_a_run_draws_from_torch_itself() -> None:
    plugin = Scaled()
    assert plugin.rng is None
    assert plugin.name == "scaled"
    assert torch.rand(1, generator=plugin.rng).shape == (1,)


def test_the_string_under_a_field_describes_the_option() -> None:
    assert Scaled.model_fields["weight"].description == "How much."


def test_a_hookimpl_is_still_a_plain_method() -> None:
    class Doubling(Plugin):
        """For this test."""

        @hookimpl
        def penalty(self, real: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"D/x": 2 * real}

    assert Doubling().penalty(torch.ones(()))["D/x"].item() == 2


def test_who_still_implements_a_hook_that_will_go_is_told_so_at_its_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notice = FutureWarning("penalty: will be removed in 9.0; implement discriminator_loss")
    monkeypatch.setitem(hookspecs.penalty.ganlab_spec, "warn_on_impl", notice)  # type: ignore[attr-defined]
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "wgan_gp.toml")
    with pytest.warns(FutureWarning, match="will be removed") as told:
        register(recipe)
    assert [Path(one.filename).name for one in told] == ["gradient_penalty.py"]
