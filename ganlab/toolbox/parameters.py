"""Choose parameters of a network: by patterns of their names, or the first layers."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from ganlab.plugin import Plugin
from ganlab.recipe.file import did_you_mean

SHOWN = 8  # names in a message


def parameters_named(
    plugin: Plugin, option: str, patterns: Sequence[str], network: nn.Module
) -> list[nn.Parameter]:
    """The parameters whose names match one of the patterns, in the order of the network.

    A pattern is the name of a parameter, or that of a part of the network, which stands for all
    parameters in it. `*`, `?` and `[...]` match as in file names. Several discriminators (a
    ModuleList) are searched one by one, each by its own names.

    :param option: the option of the plugin that holds the patterns, for the message.
    :raises RecipeError: for a pattern that matches no parameter; it says which names there are.
    """
    named = [pair for part in _networks(network) for pair in part.named_parameters()]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name, _ in named):
            raise plugin.error(
                f"'{pattern}' is the name of no parameter or part of the network"
                + _names_there(pattern, [name for name, _ in named]),
                option,
            )
    return [p for name, p in named if any(_matches(name, pattern) for pattern in patterns)]


def first_layers(plugin: Plugin, option: str, count: int, network: nn.Module) -> list[nn.Parameter]:
    """The parameters of the first layers of a network, or of each of several discriminators.

    A layer begins at each module that has a weight of at least two dimensions, such as a
    convolution. The parameters up to the next one belong to it, such as those of a norm. The order
    is that in which the network registers its modules.

    :raises RecipeError: when a network has no more than `count` layers.
    """
    chosen: list[nn.Parameter] = []
    for part in _networks(network):
        layers: list[list[nn.Parameter]] = []
        for owned in _by_owner(part).values():
            if not layers or any(p.dim() >= 2 for p in owned):
                layers.append([])
            layers[-1] += owned
        if count >= len(layers):
            raise plugin.error(
                f"{option} = {count} leaves nothing to train: a network has {len(layers)} layers; "
                f"set at most {len(layers) - 1}",
                option,
            )
        chosen += [p for layer in layers[:count] for p in layer]
    return chosen


def _networks(network: nn.Module) -> list[nn.Module]:
    return list(network) if isinstance(network, nn.ModuleList) else [network]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _owner(name: str) -> str:
    """The module that has a parameter; of a parametrization, the module that it is for."""
    module, parametrized, _ = f".{name}".partition(".parametrizations.")
    return module[1:] if parametrized else name.rpartition(".")[0]


def _by_owner(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        found.setdefault(_owner(name), []).append(parameter)
    return found


def _names_there(pattern: str, names: Sequence[str]) -> str:
    """The nearest name, or else the names of the layers."""
    parts = {".".join(name.split(".")[:n]): None for name in names for n in range(1, 20)}
    if near := did_you_mean(pattern, parts):
        return near
    layers = list(dict.fromkeys(_owner(name) or name for name in names))
    more = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
    return f"; there are {', '.join(layers[:SHOWN])}{more}"
