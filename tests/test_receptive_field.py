"""``python -m homework.receptive_field``: the exact cells that each depth sees, and the picture."""

import sys

import pytest
import torch
from conftest import sentence
from PIL import Image

from homework.evaluation.receptive_fields import MODELS, gradient, seen, weighted

SIZE, MIDDLE = 11, 5


def cells(field: torch.Tensor) -> set[tuple[int, int]]:
    """Of a yes/no map: (rows down, columns right) of the middle."""
    return {(y - MIDDLE, x - MIDDLE) for y, x in field.nonzero().tolist()}


def box(depth: int) -> set[tuple[int, int]]:
    """Everything before the middle that ``depth`` steps of one row or column can reach."""
    around = range(-depth, depth + 1)
    return {(y, x) for y in range(-depth, 1) for x in around if (y, x) < (0, 0)}


# what is within reach and before the middle, and is not seen
BLIND_SPOT = {
    2: {(-1, 2)},
    3: {(-1, 2), (-1, 3), (-2, 3)},
    4: {(-1, 2), (-1, 3), (-1, 4), (-2, 3), (-2, 4), (-3, 4)},
}


@pytest.mark.parametrize("depth", BLIND_SPOT)
def test_the_blind_spot_of_pixelcnn(depth):
    assert cells(seen("PixelCNN", depth, SIZE)) == box(depth) - BLIND_SPOT[depth]


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_gated_pixelcnn_has_none(depth):
    assert cells(seen("GatedPixelCNN", depth, SIZE)) == box(depth)


def test_a_wide_first_kernel_reaches_further():
    """After a 7x7, the second layer's step adds one cell to each side; PixelCNN's leads up and right, never right alone."""
    assert cells(seen("GatedPixelCNN", 2, SIZE, kernel=7)) == box(4)
    assert cells(seen("PixelCNN", 2, SIZE, kernel=7)) == box(4) - {(-1, 4)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("depth", [1, 3])
def test_random_weights_agree(name, depth):
    """No draw has a gradient outside of the field, and together they cover it."""
    strength = weighted(name, depth, SIZE)
    assert torch.equal(strength > 0, seen(name, depth, SIZE)) and strength.max() == 1
    x = torch.randn(1, 1, SIZE, SIZE, dtype=torch.float64)
    assert not (gradient(MODELS[name](depth, 3).double(), x) > 0)[~seen(name, depth, SIZE)].any()


def test_near_pixels_count_more():
    strength = weighted("GatedPixelCNN", 4, SIZE)
    assert strength[MIDDLE, MIDDLE - 1] > 10 * strength[MIDDLE, MIDDLE - 4] > 0


def test_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    weighted("PixelCNN", 1, SIZE), seen("PixelCNN", 1, SIZE)
    assert torch.equal(torch.rand(3), expected)


def test_the_command_writes_a_picture(command, tmp_path):
    out = tmp_path / "new" / "field.png"
    done = command("receptive_field", "--layers", 2, "--size", 7, "--out", out)
    assert done.returncode == 0 and str(out) in done.stdout, done.stderr
    with Image.open(out) as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert any(r > 200 and g < 60 and b < 60 for _, (r, g, b) in colours), "no cross in the middle"
    assert [p.name for p in out.parent.iterdir()] == ["field.png"]


def test_a_position_that_is_given_may_be_anywhere(command, tmp_path):
    assert torch.equal(seen("PixelCNN", 3, SIZE, position=(5, 5)), seen("PixelCNN", 3, SIZE))
    corner = seen("GatedPixelCNN", 3, 4, position=(0, 3))
    assert corner.nonzero().tolist() == [[0, 0], [0, 1], [0, 2]]
    out = tmp_path / "corner.png"
    options = "--layers", 1, "--size", 4, "--out", out
    assert command("receptive_field", *options, "--row", 0, "--column", 3).returncode == 0 and out.is_file()
    assert "--column is 4, but must be an integer from 0 to 3" in sentence(
        command("receptive_field", *options, "--row", 0, "--column", 4)
    )


@pytest.mark.parametrize("option, value", [("layers", 0), ("layers", 65), ("size", 10), ("size", 10**9 + 1),
                                           ("kernel", 1), ("kernel", 257), ("size", "x"), ("seed", -1)])  # fmt: skip
def test_bad_options_are_named(command, tmp_path, option, value):
    out = tmp_path / "field.png"
    assert f"--{option} is {value!r}" in sentence(command("receptive_field", f"--{option}={value}", "--out", out))
    assert not out.exists()


def test_a_missing_package_is_named(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "the package matplotlib; pip install" in sentence(command("receptive_field", "--out", tmp_path / "field.png"))
