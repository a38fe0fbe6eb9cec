"""The model card: true to the run, and read by YAML and Markdown as it was meant."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY

from ganlab import session
from ganlab.commands.model_card import GeneratorFacts, facts_of_run, model_card
from ganlab.errors import RecipeError
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe

FACTS = GeneratorFacts(
    "mine",
    "iterations = 4\n",
    (3, 8, 8),
    (3, 32, 32),
    4,
    scores={"psnr_y": 27.123456, "lpips": 0.25},
    bicubic={"psnr_y": 26.5},
    training=["image_folder: 800 items"],
    held_out=["baby", "bird"],
)


def head(card: str) -> dict[str, Any]:
    _, text, _ = card.split("---\n", 2)
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def test_the_head_says_task_library_and_scores_as_the_hub_reads_them() -> None:
    found = head(model_card(FACTS))
    assert (found["library_name"], found["pipeline_tag"]) == ("ganlab", "image-to-image")
    assert "license" not in found
    (entry,) = found["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "mine-x4"
    assert result["dataset"]["name"] == "baby, bird"
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"psnr_y": 27.1235, "lpips": 0.25}


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("My own terms, 2026", {"license": "other", "license_name": "my-own-terms-2026"}),
    ],
)
def test_a_licence_that_is_no_identifier_is_other_with_a_name(licence, expected) -> None:
    card = model_card(replace(FACTS, licence=licence))
    assert {k: v for k, v in head(card).items() if k.startswith("license")} == expected
    assert f"Stated by the owner: {licence}." in card


def test_a_card_without_licence_says_so() -> None:
    assert "Not stated." in model_card(FACTS)


def test_scores_stand_beside_bicubics_where_it_has_them() -> None:
    card = model_card(FACTS)
    assert "| psnr_y | 27.12 | 26.5 |" in card and "| lpips | 0.25 |  |" in card


def test_a_card_without_recorded_scores_names_the_command_that_scores() -> None:
    card = model_card(replace(FACTS, scores={}))
    assert "`ganlab eval RUN --data FOLDER` scores them" in card and "| score |" not in card


def test_a_name_or_a_recipe_cannot_write_the_rest_of_the_card() -> None:
    odd = replace(FACTS, name='a"\n---\n# <b>', recipe='x = "```"\n', held_out=['"]\n- b: c'])
    card = model_card(odd)
    assert head(card)["model-index"][0]["name"] == 'a"\n---\n# <b>-x4'
    assert "<b>" not in card.split("---\n", 2)[2].replace("\\<b\\>", "")
    assert card.rstrip().endswith('````toml\nx = "```"\n````')


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("cards") / "tiny.toml"
    file.write_text(TINY)
    folder, _ = session.start(load_recipe(file), "cpu", Limits(None, None), file.parent, "mine")
    return folder.path


def test_the_facts_of_a_run_are_those_of_its_records(run: Path) -> None:
    facts = facts_of_run(run, "last", "mit")
    assert (facts.name, facts.scale, facts.iteration, facts.licence) == ("mine", 4, 4, "mit")
    assert facts.recipe == (run / "recipe.toml").read_text()
    assert facts.training == ["dead_leaves: 2 items"]
    assert facts.title == "mine-x4"


def test_what_cannot_be_a_card_is_refused_in_one_sentence(run: Path) -> None:
    with pytest.raises(RecipeError, match=r"best\.safetensors: .*; --weights last is there"):
        facts_of_run(run, "best")
    with pytest.raises(RecipeError, match=r"--license a.nb: give a name of one line"):
        facts_of_run(run, "last", "a\nb")
