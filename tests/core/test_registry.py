"""Every trainable model keeps the contract that the training loop, the checkpoints and the pictures rely on."""

import copy
import importlib
import inspect
import json
import pickle
import sys

import pytest
import torch
from conftest import TINY, K, batch_for, build
from hypothesis import assume, given
from hypothesis import strategies as st

import homework
from homework.core import checkpoint, registry
from homework.datasets.kinds import DATASETS

NAMES = list(registry.MODELS)
every_model = pytest.mark.parametrize("name", NAMES)


def test_every_name_has_a_tiny_model_here():
    assert set(TINY) == set(NAMES)


@every_model
def test_name_leads_to_a_class_of_that_name(name):
    cls = registry.model_class(name)
    assert cls.__name__ == name and issubclass(cls, homework.Model) and cls.data in DATASETS
    assert getattr(homework, name) is cls


@pytest.mark.parametrize("name", ["PatchAutoEncoder", "BSQPatchAutoEncoder", "AutoregressiveModel"])
def test_the_course_modules_load_without_arguments(name):
    assert inspect.signature(importlib.import_module(registry.MODELS[name]).load).parameters == {}


@pytest.mark.parametrize("name", ["Nonsense", "", "homework.ae", "__class__"])
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError) as error:
        registry.model_class(name)
    assert all(known in str(error.value) for known in NAMES) and repr(name) in str(error.value)


def test_the_nearest_name_is_offered():
    with pytest.raises(ValueError, match=r"no model 'patchautoencoder'; did you mean PatchAutoEncoder\?"):
        registry.model_class("patchautoencoder")


@every_model
def test_loss_is_finite_scalars_and_reaches_every_parameter(name):
    model = build(name)
    losses = model.loss(batch_for(model))
    assert isinstance(losses, dict) and "loss" in losses and losses["loss"].requires_grad
    for key, value in losses.items():
        assert isinstance(key, str) and value.shape == () and value.isfinite(), key
        assert key == "loss" or key.endswith("_loss") or not value.requires_grad, f"{key} keeps the graph alive"
    losses["loss"].backward()
    for key, p in ((key, p) for key, p in model.named_parameters() if p.requires_grad):
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, key


@every_model
def test_forward_gives_an_output_and_a_dict(name):
    model = build(name)
    output, measures = model(batch_for(model))
    assert isinstance(output, torch.Tensor) and isinstance(measures, dict)
    was = model.training
    assert type(model.eval()(batch_for(model))[0]) is type(model.train()(batch_for(model))[0]) and was


@every_model
def test_loss_does_not_change_the_weights(name):
    model = build(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.loss(batch_for(model))["loss"].backward()
    model.images(batch_for(model))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training


@every_model
def test_checkpoint_gives_the_same_model_bit_for_bit(name, tmp_path):
    model, meta = build(name), {"command": "x", "valid": {"loss": 0.5}}
    checkpoint.save(model, tmp_path / "m.pth", meta)
    other = checkpoint.load(tmp_path / "m.pth", name)
    assert type(other) is type(model) and other.config == model.config and other.meta == meta and not other.training
    assert other.state_dict().keys() == model.state_dict().keys()
    for k, v in model.state_dict().items():
        assert torch.equal(other.state_dict()[k], v) and other.state_dict()[k].dtype == v.dtype, k
    with torch.no_grad():
        assert torch.equal(other(batch_for(model))[0], model.eval()(batch_for(model))[0])


@every_model
def test_half_precision_checkpoint_is_close_and_smaller(name, tmp_path):
    model = build(name)
    checkpoint.save(model, tmp_path / "full.pth")
    checkpoint.save(model, tmp_path / "half.pth", dtype=torch.float16)
    other = checkpoint.load(tmp_path / "half.pth")
    for k, v in model.state_dict().items():
        assert other.state_dict()[k].dtype == v.dtype, k
        assert torch.allclose(other.state_dict()[k], v, rtol=1e-3, atol=1e-6), k
    losses = [m.eval().loss(batch_for(m))["loss"].item() for m in (model, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    weights = sum(v.nbytes for v in model.state_dict().values())
    assert (tmp_path / "half.pth").stat().st_size < (tmp_path / "full.pth").stat().st_size - 0.4 * weights


@every_model
def test_pictures_are_in_range(name):
    """Pictures (n,3,H,W) in [0,1], or int64 grids for the training loop to decode; also of an untrained, wild model."""
    model = build(name)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    pictures = model.images(batch_for(model))
    assert isinstance(pictures, dict) and pictures
    for value in pictures.values():
        if value.is_floating_point():
            assert value.ndim == 4 and value.shape[1] == 3 and 0 <= value.min() and value.max() <= 1
        else:
            assert value.dtype == torch.int64 and value.ndim == 3 and 0 <= value.min() and value.max() < model.n_tokens


@every_model
def test_config_is_plain_and_builds_the_model_again(name):
    model = build(name)
    config = json.loads(json.dumps(model.config))
    assert config == model.config and TINY[name].items() <= config.items()
    assert list(config) == list(inspect.signature(type(model)).parameters), "every argument, whether given or not"
    shapes = {k: v.shape for k, v in type(model)(**config).state_dict().items()}
    assert shapes == {k: v.shape for k, v in model.state_dict().items()}


@every_model
def test_progress_can_be_set(name):
    for f in (0, 0.5, 1.0):
        assert build(name).set_progress(f) is None


@every_model
def test_two_models_are_independent(name):
    a, b = build(name), build(name)
    a.config["other"] = 1
    assert "other" not in b.config and "other" not in TINY[name]


@every_model
def test_every_argument_is_documented(name):
    """In the class or in the one that it inherits from."""
    cls = registry.model_class(name)
    text = " ".join(c.__doc__ or "" for c in cls.__mro__[:-2])
    assert [k for k in inspect.signature(cls).parameters if k not in text] == []


# what no argument can be, whatever it is for
nonsense = st.one_of(
    st.just(float("nan")),
    st.just(float("inf")),
    st.integers(max_value=-1),
    st.floats(max_value=-0.01, allow_nan=False),
    st.text("xyz!?", min_size=1, max_size=4),
    st.just([]),
    st.none(),
)
switches = {"recompute"}


@every_model
@given(data=st.data())
def test_a_bad_argument_is_named(name, data):
    config = build(name).config
    argument = data.draw(st.sampled_from(sorted(config)))
    value = data.draw(nonsense)
    optional = inspect.signature(type(build(name))).parameters[argument].default is None
    assume(argument not in switches and not (optional and value is None))
    with pytest.raises(ValueError, match=argument) as error:
        type(build(name))(**config | {argument: value})
    assert repr(value) in str(error.value) or str(value) in str(error.value)


@every_model
@given(data=st.data())
def test_a_fraction_or_truth_for_a_count_is_named(name, data):
    config = build(name).config
    counts = sorted(k for k, v in config.items() if isinstance(v, int) and not isinstance(v, bool))
    argument, value = data.draw(st.sampled_from(counts)), data.draw(st.sampled_from([2.5, 0.5, True, "3"]))
    with pytest.raises(ValueError, match=argument):
        type(build(name))(**config | {argument: value})


def test_width_that_the_heads_do_not_divide_is_named_with_the_remedy():
    with pytest.raises(ValueError, match="d_latent is 10.*n_heads = 4.*change"):
        build("AutoregressiveModel", d_latent=10, n_heads=4)


@pytest.mark.parametrize("options", [{"no_such": 1}, {"n_token": K}])
def test_build_names_the_nearest_option(options):
    cls = registry.model_class("AutoregressiveModel")
    with pytest.raises(ValueError) as error:
        registry.build(cls, options, {})
    assert f"no option --{next(iter(options))} of an AutoregressiveModel" in str(error.value)
    assert ("did you mean --n_tokens?" in str(error.value)) == ("n_token" in options)


# --- models of others -----------------------------------------------------------------------------------------------------


@pytest.fixture
def table(monkeypatch) -> dict:
    """The table of models, as it was after the test."""
    monkeypatch.setattr(registry, "MODELS", dict(registry.MODELS))
    return registry.MODELS


def foreign(name: str = "Foreign", module: str = "somewhere") -> type:
    """A third party's prior: every token is equally probable but for a bias."""

    class Foreign(homework.Prior):
        def __init__(self, n_tokens: int = K):
            super().__init__()
            self.n_tokens, self.bias = n_tokens, torch.nn.Parameter(torch.zeros(n_tokens))

        def forward(self, tokens):
            return self.bias.expand(*tokens.shape, self.n_tokens), {}

    Foreign.__name__ = Foreign.__qualname__ = name
    Foreign.__module__ = module
    return Foreign


def test_a_registered_model_is_one_of_them(table, tmp_path):
    cls = foreign()
    assert homework.register(cls) is cls and registry.model_class("Foreign") is cls
    checkpoint.save(cls(5), tmp_path / "f.pth")
    model = homework.load(tmp_path / "f.pth", "Foreign")
    assert type(model) is cls and model.config == {"n_tokens": 5}
    with pytest.raises(ValueError, match="Foreign"):
        registry.model_class("Nonsense")  # the known ones are listed


def test_a_name_belongs_to_one_class(table):
    for taken in (foreign("PixelCNN"), homework.register(foreign()) and foreign(module="elsewhere")):
        with pytest.raises(ValueError, match=f"{taken.__name__}.*another"):
            homework.register(taken)
    assert registry.model_class("PixelCNN") is homework.PixelCNN
    again = foreign()  # the same definition, run again in a notebook
    assert homework.register(again) is again and registry.model_class("Foreign") is again
    assert homework.register(homework.PixelCNN) is homework.PixelCNN  # what the table has already


@pytest.mark.parametrize("cls", [torch.nn.Linear, lambda: None, 5])
def test_what_is_not_a_model_cannot_be_registered(table, cls):
    with pytest.raises(ValueError, match="inherits from homework.Model"):
        homework.register(cls)


PLUGIN = """
import homework

@homework.register
class {name}(homework.Prior):
    pass

Missing = None
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package whose module ``their_models`` names models by entry points."""
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    entries = (
        "Installed = their_models:Installed",
        "Alias = their_models:Installed",
        "Gone = their_models:gone",
        "Broken = none:X",
    )
    (info / "entry_points.txt").write_text("\n".join(["[homework.models]", *entries]))
    (tmp_path / "their_models.py").write_text(PLUGIN.format(name="Installed"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_models", raising=False)


def test_models_of_installed_packages_are_found_by_name(table, installed):
    with pytest.raises(ValueError, match="Nonsense.*PixelCNN.*Installed"):
        registry.model_class("Nonsense")
    assert "their_models" not in sys.modules  # looked up, but not imported
    cls = registry.model_class("Installed")
    assert cls.__module__ == "their_models" and registry.model_class("Installed") is cls
    for name, message in (("Gone", "cannot be imported"), ("Broken", "cannot be imported"), ("Alias", "another name")):
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            registry.model_class(name)


def test_known_names_are_found_without_looking_at_packages(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", None)
    assert registry.model_class("PixelCNN") is homework.PixelCNN


# --- the contract's own code ----------------------------------------------------------------------------------------------


class Options(homework.Model):
    def __init__(self, a: int, b: list | None = None, *, c: str = "c"):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


class Inherits(Options):
    pass


@pytest.mark.parametrize("cls", [Options, Inherits])
def test_config_has_every_argument_however_it_is_given(cls):
    assert cls(1).config == cls(a=1).config == {"a": 1, "b": None, "c": "c"}
    assert cls(1, [2], c="d").config == cls(c="d", b=[2], a=1).config == {"a": 1, "b": [2], "c": "d"}
    assert list(cls(c="d", a=1).config) == ["a", "b", "c"]
    for arguments, named in ((), {}), ((1, 2, 3), {}), ((1,), {"d": 4}):
        with pytest.raises(TypeError):
            cls(*arguments, **named)
    assert homework.Model().config == {}


def test_config_is_a_copy():
    b = [1]
    model = Options(1, b)
    b.append(2)
    assert model.config["b"] == [1]
    model.config["b"].append(3)
    assert b == [1, 2] and Options(1).config["b"] is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_models_can_be_copied_and_pickled(duplicate):
    model = Inherits(1, [2])
    model.meta["command"] = "x"
    other = duplicate(model)
    assert type(other) is Inherits and other.config == model.config and other.meta == model.meta
    assert torch.equal(other.layer.weight, model.layer.weight) and other.layer.weight is not model.layer.weight
    other.config["b"].append(3)
    other.meta["command"] = "y"
    assert model.config["b"] == [2] and model.meta == {"command": "x"}


def test_the_package_exports_its_contracts():
    for name in ("Model", "Tokenizer", "Prior", "Steps", "Dataset", "register", "load", *registry.MODELS):
        assert name in homework.__all__ and getattr(homework, name).__name__ == name
