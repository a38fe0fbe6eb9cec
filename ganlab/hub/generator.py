"""A run's generator as a module that the Hugging Face Hub's library saves, loads and sends."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import Tensor, nn

from ganlab.commands.generator import load_for_use
from ganlab.hub.files import CARD, REQUIRED, Files, files_of_run, make_run, read_files, write_files
from ganlab.recipe.trust import trusting_code


class Generator(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="ganlab",
    pipeline_tag="image-to-image",
    tags=["ganlab", "super-resolution"],
):
    """A trained generator: a `torch.nn.Module`, with the Hub's methods.

        generator = Generator.of_run("runs/wgan_gp-1")
        generator.save_pretrained("folder")
        generator.push_to_hub("USER/NAME", private=True)
        generator = Generator.from_pretrained("USER/NAME", revision="main")

    `from_pretrained` takes also a folder. It believes nothing of what it reads; code of plugin
    files runs only with `trust_code=True`.
    """

    def __init__(self, network: nn.Module, files: Files, scale: int) -> None:
        super().__init__()
        self.network, self.files, self.scale = network, files, scale
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Enlarge images: [N, C, h, w] in 0..1 -> [N, C, scale h, scale w], about 0..1."""
        return self.network(images)

    @classmethod
    def of_run(
        cls,
        run: Path | str,
        weights: Literal["last", "best"] = "last",
        *,
        licence: str = "",
        device: str = "cpu",
        trust_code: bool = False,
    ) -> "Generator":
        """The generator of a run.

        :param run: as the commands take it: a path, a name, the beginning of a name, or "@last".
        :param licence: of the weights, as their owner states it, for the model card.
        :raises GanlabError: when the run has no such weights, or its generator enlarges no images.
        """
        with _trusting(trust_code):
            loaded, network, folder = load_for_use(run, weights, device)
        files = files_of_run(folder.path, weights, licence)
        return cls(network, files, scale=loaded.real_shape[-1] // loaded.condition_shape[-1])

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
        write_files(save_directory, self.files, tensors)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        device: str = "cpu",
        trust_code: bool = False,
        **options: Any,
    ) -> "Generator":
        with _files_of(model_id, options) as folder, TemporaryDirectory() as made:
            make_run(folder, Path(made), {"from": model_id})
            with _trusting(trust_code):
                run, network, _ = load_for_use(Path(made), "last", device)
            scale = run.real_shape[-1] // run.condition_shape[-1]
            return cls(network, read_files(folder), scale=scale)


@contextmanager
def _files_of(model_id: str, options: dict[str, Any]) -> Iterator[Path]:
    """Context with the folder of a generator's files: a given one, or the library's cache."""
    if Path(model_id).is_dir():
        yield Path(model_id)
        return
    known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
    chosen = {key: options[key] for key in known if key in options}
    yield Path(snapshot_download(model_id, allow_patterns=[*REQUIRED, CARD, "*.py"], **chosen))


def _trusting(trust_code: bool) -> Any:
    return trusting_code() if trust_code else nullcontext()
