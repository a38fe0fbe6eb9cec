"""Weights come from a local file that is what it should be, or from none."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ganlab import Plugin, RecipeError, load_weights, weights_file
from ganlab.images.files import cache_folder


class Judge(Plugin):
    """A plugin that wants weights."""


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def state():
    torch.manual_seed(3)
    return dict(network().state_dict())


def saved(folder, content, name="net.pth"):
    file = folder / name
    if name.endswith(".safetensors"):
        save_file(content, file)
    else:
        torch.save(content, file)
    return file


def load(file, sha256=None, **options):
    net = network()
    source = "https://example.org/net.pth"
    load_weights(Judge(), net, file, sha256 or digest(file)[:8], source, **options)
    return net


def assert_equal(net, state):
    found = net.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("name", ["net.pth", "net.pt", "net.safetensors"])
def test_a_file_of_the_right_digest_fills_the_network(tmp_path, state, name):
    file = saved(tmp_path, state, name)
    assert_equal(load(file), state)
    assert_equal(load(file, sha256=digest(file).upper()), state)


@pytest.mark.parametrize("wrapper", ["params_ema", "params", "state_dict"])
def test_the_wrapper_of_a_trainer_is_taken_off(tmp_path, state, wrapper):
    assert_equal(load(saved(tmp_path, {wrapper: state, "iteration": 7})), state)


def test_averaged_weights_go_before_plain_ones(tmp_path, state):
    other = {name: value + 1 for name, value in state.items()}
    assert_equal(load(saved(tmp_path, {"params": other, "params_ema": state})), state)


def test_a_missing_file_is_named_with_its_source_and_its_place(tmp_path):
    file = tmp_path / "weights" / "net.pth"
    with pytest.raises(RecipeError) as caught:
        load(file, sha256="00000000")
    message = str(caught.value)
    assert message.startswith("judge: ")
    assert str(file) in message and "https://example.org/net.pth" in message
    assert "put it there" in message


def test_another_digest_is_refused_before_the_file_is_opened(tmp_path):
    file = tmp_path / "net.pth"
    file.write_bytes(b"no weights at all")
    with pytest.raises(RecipeError, match=rf"begins with {digest(file)[:8]}.* dcbb9e9d.*get it"):
        load(file, sha256="dcbb9e9d")


@pytest.mark.parametrize("place", [0, 7, 63])
def test_every_digit_of_the_digest_counts(tmp_path, state, place):
    file = saved(tmp_path, state)
    right = digest(file)
    wrong = right[:place] + ("1" if right[place] == "0" else "0") + right[place + 1 :]
    with pytest.raises(RecipeError, match="is not the expected file"):
        load(file, sha256=wrong)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "cannot be read as a file of weights"),
        (b"<html>404</html>", "cannot be read as a file of weights"),
    ],
)
@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_what_is_no_file_of_weights_is_refused(tmp_path, content, fault, name):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=fault):
        load(file)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"loss": 0.5}}])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    with pytest.raises(RecipeError, match="something other than the weights of one network"):
        load(saved(tmp_path, content))


def test_a_pickled_module_is_not_run(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read as a file of weights"):
        load(saved(tmp_path, network()))


def test_a_lacking_name_is_told(tmp_path, state):
    del state["2.weight"], state["2.bias"]
    with pytest.raises(RecipeError, match=r"it lacks 2\.weight and 1 more"):
        load(saved(tmp_path, state))


def test_an_unknown_name_is_told(tmp_path, state):
    state["classifier.weight"] = torch.zeros(1)
    with pytest.raises(RecipeError, match=r"it has an unknown classifier\.weight$"):
        load(saved(tmp_path, state))


def test_a_wrong_shape_is_told(tmp_path, state):
    state["0.weight"] = torch.zeros(4, 2)
    with pytest.raises(RecipeError, match=r"has shape \[4, 2\] in the file, and \[3, 2\] in"):
        load(saved(tmp_path, state))


def test_only_names_that_begin_as_stated_are_ignored(tmp_path, state):
    whole = state | {"classifier.0.weight": torch.zeros(1)}
    assert_equal(load(saved(tmp_path, whole), ignored=("classifier.",)), state)
    with pytest.raises(RecipeError, match="an unknown head"):
        load(saved(tmp_path, whole | {"head": torch.zeros(1)}), ignored=("classifier.",))


def test_a_refused_file_leaves_the_network_alone(tmp_path, state):
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    file = saved(tmp_path, state | {"0.weight": torch.zeros(4, 2)})
    with pytest.raises(RecipeError):
        load_weights(Judge(), net, file, digest(file), "")
    assert_equal(net, before)


def test_the_default_place_is_in_the_cache_folder(tmp_path):
    assert weights_file("vgg19.pth") == cache_folder() / "weights" / "vgg19.pth"
    assert weights_file("vgg19.pth", tmp_path / "mine.pth") == tmp_path / "mine.pth"
