"""Initial weights: training starts from the weights in a file, not from random ones."""

from pathlib import Path

from pydantic import Field
from torch import nn

from ganlab import (
    Plugin,
    RecipePath,
    Run,
    file_digests,
    fill_network,
    hookimpl,
    read_weights,
    require_discriminator,
)


class InitialWeights(Plugin):
    """Starts training from weights in a file, as SRGAN does (Ledig et al. 2017, arXiv:1609.04802).

    SRGAN starts from a trained SRResNet. A file is .safetensors, such as the weights of another
    run, or .pth or .pt, such as a published checkpoint. If a file has `params_ema`, `params` or
    `state_dict`, the first of these is taken. All names and shapes must be those of the network.
    No code in a file is run (`torch.load(weights_only=True)`).

    The weights are loaded before any other plugin starts, so the average of `ema` begins with them.
    A resumed run reads the files too; then its checkpoint replaces all weights.
    """

    generator: RecipePath | None = Field(None, examples=["generator.safetensors"])
    """File of the generator's weights."""

    discriminator: RecipePath | None = None
    """File of the discriminator's weights."""

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        if self.generator is None and self.discriminator is None:
            raise self.error("names no file; set generator or discriminator, or remove the plugin")
        for option, file in self._files():
            if not file.is_file():
                raise self.error(f"{file}: no such weights file; correct the path", option)
        if self.discriminator is not None:
            self._require_one_discriminator(run)

    @hookimpl(tryfirst=True)
    def run_start(self, run: Run) -> None:
        for option, file in self._files():
            network = run.G if option == "generator" else run.D
            assert network is not None
            self._fill(network, file)

    @hookimpl
    def data_digest(self) -> dict[str, str]:
        return file_digests(*(file for _, file in self._files()))

    def _files(self) -> list[tuple[str, Path]]:
        """The options that name a file, with their files."""
        options = (("generator", self.generator), ("discriminator", self.discriminator))
        return [(option, file) for option, file in options if file is not None]

    def _require_one_discriminator(self, run: Run) -> None:
        require_discriminator(self, run, "discriminator")
        if run.recipe.num_discriminators > 1:
            raise self.error(
                f"the recipe has {run.recipe.num_discriminators} discriminators, and a file holds "
                "the weights of one; leave the option out",
                "discriminator",
            )

    def _fill(self, network: nn.Module, file: Path) -> None:
        state = read_weights(self, file)
        try:
            network.load_state_dict(state)  # it may accept older names of its tensors
        except RuntimeError:
            fill_network(self, network, state, file)  # says in one line what differs
