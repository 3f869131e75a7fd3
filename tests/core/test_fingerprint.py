"""Fingerprints: they stay the same as long as a model computes the same, and differ when it does not."""

import pytest
import torch
from conftest import build
from torch import nn

from homework.core import checkpoint, fingerprint
from homework.core.model import Model

# each shipped model's fingerprint and its legacy_fingerprint (the first 16 digits), and its identity. Compressed files,
# token files and priors hold them: a change here means that files are orphaned. The second and the last are those of the
# version before fingerprints covered what is computed.
SHIPPED = {
    "AutoregressiveModel": ("7642e8342ae666bb", "ec03ecbcb30cccbb", "de3ad2e7a82550db f4a710f57fad4087"),
    "BSQPatchAutoEncoder": ("6e69bdc2f91e767d", "d4fe613d3491273f", "016ee18735b83792 beaede0e42fe8c14"),
    "CascadeScene": ("dd7445a0cd6d4495", "e1c38e9c1bc6fdbe", "8660fde2f99a3ee4 438ceed333d05755"),
    "CascadeStage0": ("f63a545b63caf0cc", "01e487172e1972c2", "ff665d8ff1ee06f3 933639d379f60729"),
    "CascadeStage1": ("48cbceea84340689", "9ad45ecee7219bae", "162c4c42137aa374 3c296784639dbdaf"),
    "CascadeStage2": ("7185b95fb6398641", "8e7d45672ac91f7a", "e70dd0c4b16d6fe2 92c4ad82c4353d56"),
    "EnhancementLayer": ("44f27df58460eb42", "f69d1f4e64c502b6", "7192ee413f67a97c c49873f264e628cf"),
    "GatedPixelCNN": ("2a939639973cfc17", "a487e553a6850b8f", "e3e84466f878820f 135d45820734e9cd"),
    "MnistGatedPixelCNN": ("2362591c90087a7b", "e43a765dc8d691ee", "b57c9098415bbaf5 8a658f2c3d7f239b"),
    "PatchAutoEncoder": ("808cdf9350ede96f", "7e9153854f54468a", "a85fe47035b410aa c34e817140cfaac8"),
    "PixelCNN": ("b6d784b23f7bb00e", "f24ba12832e3530b", "2b4a49eda04777b6 fdcb9e5cf0ece3ec"),
    "VQAutoregressiveModel": ("8f5abf8b30f1bf9b", "833479d9be8cb561", "88067ca38c34c275 467498f9d2edc866"),
    "VQGatedPixelCNN": ("efb57cc950459315", "da70d5e544b0a478", "8014fddd50bc5ab3 8042f804a89087d8"),
    "VQPatchAutoEncoder": ("042e517ab47907eb", "78b89ecd79548b18", "47df8ae02bfd27d9 7597d98c0bdeeb99"),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_fingerprints_of_the_shipped_models_are_pinned(name):
    model = checkpoint.load(checkpoint.PRETRAINED / f"{name}.pth")
    long, legacy = fingerprint.fingerprint(model), fingerprint.legacy_fingerprint(model)
    assert (long.hex()[:16], legacy.hex()[:16], fingerprint.identity(model)) == SHIPPED[name]
    assert len(long) == len(legacy) == 32


def test_every_shipped_model_is_pinned():
    assert {path.stem for path in checkpoint.PRETRAINED.glob("*.pth")} == set(SHIPPED)


class Line(Model):
    """y = a x + b, or with ``square`` y = a x^2 + b."""

    architecture = "line 1"
    training_options = frozenset({"dropout"})

    def __init__(self, square: bool = False, dropout: float = 0.0):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([3.0]))


def prints(model: Model) -> tuple[str, str]:
    """The fingerprint and the first half of the identity."""
    return fingerprint.fingerprint(model).hex(), fingerprint.identity(model).split()[0]


def test_moving_and_renaming_what_computes_the_same_changes_nothing():
    class RenamedLine(Model):
        architecture, training_options = Line.architecture, Line.training_options

        def __init__(self, square: bool = False, dropout: float = 0.0, added: int = 5):
            super().__init__()
            self.b, self.a = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([2.0]))  # in another order

    moved = type("Line", (Line,), {"__module__": "somewhere.else", "architecture": "line 1"})
    assert prints(moved()) == prints(RenamedLine()) == prints(RenamedLine(added=5)) == prints(Line())
    assert prints(RenamedLine(added=6)) != prints(Line())


def test_a_subclass_has_an_architecture_of_its_own():
    class Steeper(Line):
        pass

    assert prints(Steeper()) != prints(Line())


def test_what_changes_training_alone_does_not_matter():
    assert prints(Line(dropout=0.3)) == prints(Line())
    tiny = build("BSQPatchAutoEncoder")
    assert prints(build("BSQPatchAutoEncoder", inverse_temperature=50.0)) == prints(tiny)


def test_what_is_computed_matters():
    class Successor(Line):
        architecture = "line 2"

    other, swapped = Line(), Line()
    other.a.data += 0.01
    swapped.a.data, swapped.b.data = swapped.b.data, swapped.a.data
    nearly, rows = Line(), Line()
    nearly.a.data += 1e-6  # rounds to the same float16
    rows.a.data = rows.a.data[None]
    models = [Line(), Line(square=True), other, swapped, Successor(), rows]
    assert len({prints(model)[0] for model in models}) == len({prints(model)[1] for model in models}) == len(models)
    assert prints(nearly)[0] != prints(Line())[0] and prints(nearly)[1] == prints(Line())[1]


def test_identities_of_early_files_are_known():
    """They have the second half alone."""
    model = Line()
    whole = fingerprint.identity(model)
    old = whole.split()[1]
    assert fingerprint.is_of(whole, model) and fingerprint.is_of(old, model) and fingerprint.is_same(old, whole)
    assert not fingerprint.is_of(fingerprint.identity(Line(square=True)).split()[0], model)
    assert not fingerprint.is_of("", model)
