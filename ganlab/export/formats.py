"""The formats of a generator's file: each is written, and opened again as other programs do it."""

import copy
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ganlab.errors import GanlabError, RecipeError, first_line
from ganlab.export.comparison import Network
from ganlab.export.program import EXAMPLE, program_of, quiet
from ganlab.files import whole
from ganlab.tensor_files import read_safetensors, seal


@dataclass
class Opened:
    """A file that was opened again."""

    network: Network
    """From [1, C, h, w] to [1, c, scale h, scale w], as the other program computes it."""
    by: str
    """The program that opened it."""
    expected: Network
    """What it must equal."""
    tools: str
    """Which tools open such a file."""


@dataclass
class Source:
    """What is exported."""

    generator: nn.Module
    """In float32, on the CPU, in eval mode."""
    scale: int
    channels: int
    about: dict[str, Any] = field(default_factory=dict)
    """What the file says of itself, as JSON."""
    half: bool = False


_NO_SPANDREL = (
    "chaiNNer and ComfyUI open what spandrel knows, which is not installed here "
    "(pip install 'ganlab[export]')"
)
_NOT_KNOWN = "spandrel does not know this network, so chaiNNer and ComfyUI do not open it"


class Format:
    """A format. `expected` is known after `write`."""

    suffixes: ClassVar[tuple[str, ...]]
    """Of the files."""
    packages: ClassVar[tuple[str, ...]] = ()
    """That it needs, as in `import`."""
    extra: ClassVar[str] = ""
    """What to install for them."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.expected: Network = source.generator

    @classmethod
    def require(cls) -> None:
        """:raises RecipeError: when a package is missing; the message says what to install."""
        if missing := [name for name in cls.packages if find_spec(name) is None]:
            raise RecipeError(
                f"--to {NAMES[cls]} needs {' and '.join(missing)}: pip install '{cls.extra}'"
            )

    def write(self, *files: Path) -> None:
        """Write the files, one for each suffix.

        :raises RecipeError: when this generator has no such form.
        """
        raise NotImplementedError

    def open(self, *files: Path) -> Opened:
        """Open the files as another program does."""
        raise NotImplementedError


class Safetensors(Format):
    """The weights alone, for programs that know the network."""

    suffixes = (".safetensors",)

    def write(self, *files: Path) -> None:
        tensors = {
            name: (value.half() if self.source.half and value.is_floating_point() else value)
            .contiguous()
            .clone()
            for name, value in self.source.generator.state_dict().items()
        }
        with whole(files[0]) as file:
            file.write(save(tensors, seal(tensors, self.source.about)))

    def open(self, *files: Path) -> Opened:
        (file,) = files
        if find_spec("spandrel") is None:
            return self._by_ganlab(file, _NO_SPANDREL)
        from spandrel import ImageModelDescriptor, ModelLoader

        with quiet():
            try:
                found = ModelLoader().load_from_file(file)
            except Exception as error:  # of all kinds; what it does not know is one of them
                name = type(error).__name__
                return self._by_ganlab(file, f"{_NOT_KNOWN} ({name})")
        if not isinstance(found, ImageModelDescriptor) or found.scale != self.source.scale:
            return self._by_ganlab(file, "spandrel takes this network for another one")
        # the network itself: around it, spandrel extends odd sides in a way of its own, and clamps
        known = found.model.eval().float()
        by = f"spandrel, which knows it as {found.architecture.name}"
        tools = "chaiNNer, and ComfyUI as an upscale model"
        return Opened(known, by, self.source.generator, tools)

    def _by_ganlab(self, file: Path, why: str) -> Opened:
        network = copy.deepcopy(self.source.generator)
        network.load_state_dict(read_safetensors(file, sealed=True)[0])
        return Opened(network, "ganlab", self.source.generator, f"ganlab; {why}")


class Pt2(Format):
    """The graph as a program of torch.export."""

    suffixes = (".pt2",)

    def write(self, *files: Path) -> None:
        program, self.expected = _program(self.source)
        text = json.dumps(self.source.about)
        with quiet(), whole(files[0]) as file:
            torch.export.save(program, file, extra_files={"ganlab.json": text})

    def open(self, *files: Path) -> Opened:
        with quiet():
            network = torch.export.load(files[0]).module()
        tools = f"torch.export.load of torch {torch.__version__.partition('+')[0]} and later"
        return Opened(network, "torch.export.load", self.expected, tools)


class Onnx(Format):
    """The graph as an ONNX file, with its weights in it."""

    suffixes = (".onnx",)
    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "ganlab[export]"

    def write(self, *files: Path) -> None:
        program, self.expected = _program(self.source)
        with quiet():
            made = _or_refused(
                lambda: torch.onnx.export(
                    program, (), dynamo=True, input_names=["lr"], output_names=["sr"], verbose=False
                )
            )
            made.model.metadata_props["ganlab"] = json.dumps(self.source.about)
            made.save(files[0])

    def open(self, *files: Path) -> Opened:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone: it warns of what it computes at every call
        session = onnxruntime.InferenceSession(
            files[0], options, providers=["CPUExecutionProvider"]
        )

        def network(lr: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0])

        tools = "every ONNX runtime, chaiNNer"
        return Opened(network, f"onnxruntime {onnxruntime.__version__}", self.expected, tools)


class Ncnn(Format):
    """The graph for ncnn, which Upscayl and the programs of Real-ESRGAN run on GPUs by Vulkan."""

    suffixes = (".param", ".bin")
    packages = ("ncnn", "pnnx")
    extra = "ganlab[ncnn]"

    def write(self, *files: Path) -> None:
        import pnnx

        shapes = (
            f"inputshape{n}=[1,{self.source.channels},{height},{width}]"
            for n, (height, width) in (("", EXAMPLE), ("2", (64, 72)))
        )
        with quiet(), torch.no_grad():
            example = torch.rand(1, self.source.channels, *EXAMPLE)
            torch.jit.trace(self.source.generator, example, check_trace=False).save(
                str(files[0].with_name("net.pt"))
            )
        done = subprocess.run(
            [pnnx.EXEC_PATH, "net.pt", *shapes, f"fp16={int(self.source.half)}"],
            cwd=files[0].parent,
            capture_output=True,
            text=True,
            errors="replace",
        )
        made = [files[0].with_name(f"net.ncnn{suffix}") for suffix in self.suffixes]
        if done.returncode or not all(file.is_file() for file in made):
            raise RecipeError(
                "pnnx cannot convert this generator to ncnn; `--to onnx` takes more networks"
            )
        for file, target in zip(made, files, strict=True):
            file.replace(target)
        # the names that Upscayl and realesrgan-ncnn-vulkan ask for
        param = files[0]
        text = re.sub(r"\bout0\b", "output", re.sub(r"\bin0\b", "data", param.read_text()))
        param.write_text(text, newline="\n")

    def open(self, *files: Path) -> Opened:
        import ncnn
        import numpy as np

        net = ncnn.Net()
        net.opt.use_vulkan_compute = False
        for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(net.opt, f"use_{name}", False)
        if net.load_param(str(files[0])) or net.load_model(str(files[1])):
            raise RecipeError("ncnn does not know a layer of this generator; use `--to onnx`")

        def network(lr: Tensor) -> Tensor:
            extractor = net.create_extractor()
            extractor.input("data", ncnn.Mat(lr[0].numpy()).clone())
            fault, made = extractor.extract("output")
            if fault:
                raise GanlabError(f"ncnn cannot take {[*lr.shape]} (error {fault})")
            return torch.from_numpy(np.array(made))[None]

        tools = "Upscayl (as a custom model), realesrgan-ncnn-vulkan"
        return Opened(network, f"ncnn {ncnn.__version__}", self.expected, tools)


FORMATS: dict[str, type[Format]] = {
    "safetensors": Safetensors,
    "onnx": Onnx,
    "pt2": Pt2,
    "ncnn": Ncnn,
}
NAMES = {kind: name for name, kind in FORMATS.items()}


def _program(source: Source) -> tuple[torch.export.ExportedProgram, nn.Module]:
    return program_of(source.generator, source.scale, source.channels, source.half)


def _or_refused(convert: Callable[[], Any]) -> Any:
    try:
        return convert()
    except Exception as error:  # of all kinds
        raise RecipeError(f"this generator has no form in ONNX: {first_line(error)}") from None
