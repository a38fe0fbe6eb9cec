"""The loop and the steps: who moves, how often, and on which random numbers."""

from pathlib import Path

import pytest
import torch
from kept_gradients import kept
from safetensors.torch import load_file
from torch import Tensor

from ganlab.assembly import assemble
from ganlab.errors import Diverged, RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.streams import Streams, stream_seed

CPU = torch.device("cpu")


def build(file: Path, *overrides: str) -> Run:
    return assemble(load_recipe(file, overrides), CPU)


def parameters(module: torch.nn.Module | None) -> list[Tensor]:
    assert module is not None
    return [p.detach().clone() for p in module.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def batch_of(run: Run):
    return run.hook.sample_batch(batch_size=2, device=CPU)


def test_in_a_d_step_the_generator_neither_moves_nor_gets_a_gradient(tiny: Path) -> None:
    run = build(tiny)
    g, d = parameters(run.G), parameters(run.D)
    with kept(run.D_optimizer) as found:
        run.hook.discriminator_step(run=run, batch=batch_of(run))
    assert same(g, parameters(run.G))
    assert all(p.grad is None for p in run.G.parameters())
    assert any(gradient.any() for gradient in found)
    assert not same(d, parameters(run.D))


def test_in_a_g_step_the_discriminator_neither_moves_nor_gets_a_gradient(tiny: Path) -> None:
    run = build(tiny)
    assert run.D is not None
    g, d = parameters(run.G), parameters(run.D)
    run.hook.generator_step(run=run, batch=batch_of(run))
    assert same(d, parameters(run.D))
    assert all(p.grad is None and p.requires_grad for p in run.D.parameters())
    assert not same(g, parameters(run.G))


@pytest.mark.parametrize(("d_steps", "g_steps"), [(1, 1), (5, 1), (1, 3), (2, 2)])
def test_exactly_the_planned_optimizer_steps_happen(tiny: Path, d_steps: int, g_steps: int) -> None:
    run = build(tiny, f"d_steps={d_steps}", f"g_steps={g_steps}")
    assert run.D_optimizer is not None
    taken = {"D": 0, "G": 0}

    def count(role: str):
        def hook(*_: object) -> None:
            taken[role] += 1

        return hook

    run.D_optimizer.register_step_post_hook(count("D"))
    run.G_optimizer.register_step_post_hook(count("G"))
    iterate(run)
    iterate(run)
    assert taken == {"D": 2 * d_steps, "G": 2 * g_steps}


def test_pretraining_takes_the_content_losses_that_it_names(tiny: Path) -> None:
    second = 'second = { use = "pixel_loss", kind = "mse" }\n'
    tiny.write_text(tiny.read_text() + second + "pretraining = { iterations = 1 }\n")
    assert set(iterate(build(tiny))) == {"G/pixel_loss", "G/second"}
    run = build(tiny, 'pretraining.losses=["second"]')
    assert set(iterate(run)) == {"G/second"}
    run.iteration += 1
    assert {"G/pixel_loss", "G/second", "G/adversarial"} < set(iterate(run))
    with pytest.raises(RecipeError, match="'wasserstein' is no content loss of this recipe"):
        build(tiny, 'pretraining.losses=["wasserstein"]')


def test_pretraining_leaves_the_discriminator_alone_then_wakes_it(tiny: Path) -> None:
    tiny.write_text(tiny.read_text() + "pretraining = { iterations = 2 }\n")
    run = build(tiny)
    before = parameters(run.D)
    for iteration in range(3):
        losses = iterate(run)
        run.iteration += 1
        assert same(before, parameters(run.D)) == (iteration < 2)
        assert ("G/adversarial" in losses) == (iteration >= 2)
        assert "G/pixel_loss" in losses


def test_a_generator_loss_that_names_real_logits_gets_them_without_a_gradient(
    tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "paired.py").write_text(
        "from ganlab import Plugin, hookimpl\n\n\nclass Paired(Plugin):\n"
        "    @hookimpl\n    def generator_loss(self, fake_logits, real_logits):\n"
        "        assert not real_logits.requires_grad and fake_logits.requires_grad\n"
        "        return {'G/paired': (real_logits - fake_logits).mean()}\n"
    )
    assert not build(tiny).reads_real_logits
    tiny.write_text(tiny.read_text() + 'paired = { use = "./paired.py" }\n')
    losses = iterate(build(tiny))
    gap = losses["D/real_logits"] - losses["D/fake_logits"]
    assert losses["G/paired"].item() == pytest.approx(gap.item(), abs=0.05)


def test_what_a_step_returns_holds_no_graph(tiny: Path) -> None:
    assert not any(value.requires_grad for value in iterate(build(tiny)).values())


def test_an_evaluation_draws_the_same_noise_whatever_was_evaluated_before(
    tiny: Path, tmp_path: Path
) -> None:
    from ganlab.evaluation.scores import eval_mode, evaluate_images

    (tmp_path / "grain.py").write_text(
        "import torch\nfrom ganlab import Plugin, hookimpl\n\n\nclass Grain(Plugin):\n"
        "    @hookimpl(wrapper=True)\n    def degrade(self):\n        images = yield\n"
        "        return images + 0.1 * torch.randn(images.shape, generator=self.rng)\n"
    )
    tiny.write_text(tiny.read_text() + 'grain = { use = "./grain.py" }\n')
    run = build(tiny)
    images = {name: torch.full((3, 40, 40), 90, dtype=torch.uint8) for name in "ab"}
    with eval_mode(run.G) as generator:
        whole = [j.scores for j in evaluate_images(images.items(), generator, run)]
        alone = [j.scores for j in evaluate_images([("b", images["b"])], generator, run, False)]
    assert alone[0] == whole[1]
    assert whole[0] != whole[1]


def test_without_discriminator_steps_none_is_built(tiny: Path) -> None:
    drop = [f"{name}=false" for name in ("patch_discriminator", "wasserstein", "gradient_penalty")]
    run = build(tiny, "d_steps=0", *drop)
    assert run.D is None
    assert list(iterate(run)) == ["G/pixel_loss"]


def test_a_loss_logged_is_the_mean_over_the_steps_of_an_iteration(tiny: Path) -> None:
    run = build(tiny, "g_steps=2", "adam={ learning_rate = 1e-30 }")
    alone = []
    for index in range(2):
        run.streams.moment(0, "G", index)
        losses = run.hook.generator_step(run=run, batch=batch_of(run))
        alone.append(losses["G/pixel_loss"])
    torch.testing.assert_close(iterate(run)["G/pixel_loss"], torch.stack(alone).mean())


def test_another_plugin_shifts_neither_the_crops_nor_the_initial_weights(tiny: Path) -> None:
    plain = build(tiny)
    other = build(tiny, "instance_noise={ sigma = 0.1 }", "gradient_penalty.weight=3")
    assert same(parameters(plain.G), parameters(other.G))
    assert same(parameters(plain.D), parameters(other.D))
    for _ in range(3):
        iterate(other)  # draws noise
    for run in (plain, other):
        run.streams.moment(7, "D", 0)
    assert torch.equal(batch_of(plain).real, batch_of(other).real)


def test_the_discriminator_does_not_depend_on_the_generator_built(tiny: Path) -> None:
    assert same(parameters(build(tiny).D), parameters(build(tiny, "encoder_decoder.width=6").D))


def test_another_seed_gives_other_crops_and_other_weights(tiny: Path) -> None:
    one, other = build(tiny), build(tiny, "seed=1")
    assert not same(parameters(one.G), parameters(other.G))
    for run in (one, other):
        run.streams.moment(0, "D", 0)
    assert not torch.equal(batch_of(one).real, batch_of(other).real)


def test_each_step_of_an_iteration_draws_its_own_batch(tiny: Path) -> None:
    run = build(tiny)
    batches = []
    for moment in [(0, "D", 0), (0, "D", 1), (0, "G", 0), (1, "D", 0)]:
        run.streams.moment(*moment)
        batches.append(batch_of(run).real)
    assert len({b.sum().item() for b in batches}) == 4


def test_streams_are_a_function_of_seed_name_and_moment() -> None:
    one, other = Streams(3), Streams(3)
    other.moment(1)
    torch.rand(100, generator=other.generator("b"))  # drawn by somebody else, before
    for streams in (one, other):
        streams.moment(2, "G", 0)
    draw = torch.rand(4, generator=one.generator("a"))
    assert torch.equal(draw, torch.rand(4, generator=other.generator("a")))
    assert not torch.equal(draw, torch.rand(4, generator=other.generator("b")))
    assert not torch.equal(draw, torch.rand(4, generator=other.host_generator("a")))


def test_the_global_stream_of_torch_is_set_at_every_moment() -> None:
    streams = Streams(3)
    streams.moment(5)
    draw = torch.rand(3)
    torch.rand(10)
    streams.moment(5)
    assert torch.equal(draw, torch.rand(3))


def test_a_stream_seed_is_pinned_across_versions_and_machines() -> None:
    assert stream_seed(0, "torch", 0) == 8225976424698969207


def test_a_run_that_diverges_stops_and_nothing_it_wrote_holds_a_weight_that_is_not_finite(
    tiny: Path, tmp_path: Path
) -> None:
    from ganlab import session
    from ganlab.limits import Limits

    (tmp_path / "burst.py").write_text(
        "from ganlab import Plugin, Schedule, hookimpl\n\n\nclass Burst(Plugin):\n"
        "    size: Schedule = Schedule.model_validate({'from': 0, 'to': 1e300, 'after': 4})\n\n"
        "    @hookimpl\n    def generator_loss(self, fake):\n"
        "        return {'G/burst': (fake.mean() * self.size.value).square()}\n"
    )
    tiny.write_text(tiny.read_text() + 'burst = { use = "./burst.py" }\n')
    overrides = ["iterations=20", "checkpoint_every=1", "evaluate_every=1", "report_every=50"]
    recipe = load_recipe(tiny, overrides)
    limits = Limits(None, None)
    folder, code = session.start(recipe, "cpu", limits, tmp_path / "runs")
    assert code == 3
    assert folder.read_status()["state"] == "diverged"
    assert "G/burst" in folder.read_status()["message"]
    paths = list(folder.checkpoints.glob("*.pt"))
    assert paths
    for path in paths:
        networks = torch.load(path, weights_only=True)["networks"]
        for name in ("G", "D"):
            assert all(v.isfinite().all() for v in networks[name].values())
    weights = load_file(folder.weights("last"))
    assert all(v.isfinite().all() for v in weights.values())


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    from ganlab.runs.folder import RunFolder
    from ganlab.runs.journal import Journal

    journal = Journal(RunFolder(tmp_path), 10, 1, 2)
    journal.begin(0)
    journal.record(1, {"G/good": torch.tensor(1.0), "G/bad": torch.tensor(2.0)})
    with pytest.raises(Diverged, match=r"iteration 2: G/bad is not finite"):
        journal.record(2, {"G/good": torch.tensor(1.0), "G/bad": torch.tensor(float("nan"))})
    assert len((tmp_path / "stats.jsonl").read_text().splitlines()) == 2


def test_a_perfect_answer_is_consistent_with_its_lr_under_random_noise_too(tiny: Path) -> None:
    from ganlab.evaluation.scores import evaluate_images

    run = build(tiny, "gaussian_noise={}")
    hr = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)

    class Perfect(torch.nn.Module):
        def forward(self, lr: Tensor) -> Tensor:
            return hr[None] / 255

    (evaluated,) = evaluate_images([("a", hr)], Perfect(), run)
    assert evaluated.scores["lr_psnr"] == float("inf")
    assert evaluated.bicubic_scores["lr_psnr"] < 60


def test_real_and_fake_images_go_through_d_in_batches_of_their_own(tiny: Path) -> None:
    # in one batch, batch norm would normalise each by the statistics of both
    run = build(tiny, "gradient_penalty=false")
    assert run.D is not None
    sizes: list[int] = []
    run.D.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    run.hook.discriminator_step(run=run, batch=batch_of(run))
    assert sizes == [2, 2]


def test_a_value_of_some_steps_only_is_logged_as_their_mean(tiny: Path) -> None:
    overrides = ("gradient_penalty=false", "d_steps=2", "seed=3")
    often = iterate(build(tiny, *overrides, "r1={ every = 2 }"))["D/r1"]
    once = iterate(build(tiny, *overrides[:1], "seed=3", "r1={ every = 2 }"))["D/r1"]
    assert often.item() == pytest.approx(once.item())


def test_pretraining_leaves_something_to_the_game(tiny: Path) -> None:
    with pytest.raises(RecipeError, match="leaves none of the run's 4 iterations"):
        build(tiny, "pretraining={ iterations = 4 }")
