"""The tab Digits of homework.studio, without Gradio."""

import numpy as np
import pytest
import torch
from PIL import Image

from homework.core.checkpoint import PRETRAINED
from homework.evaluation.pictures import save_picture
from homework.priors.images import from_shades
from homework.studio_tabs import digits
from homework.studio_tabs.sampling import Settings


@pytest.fixture
def model():
    return digits.prior("Gated PixelCNN", torch.device("cpu"))


@pytest.mark.parametrize("name", digits.PRIORS)
def test_the_priors_of_digits_are_shipped(name):
    assert (PRETRAINED / f"{digits.PRIORS[name]}.pth").is_file()
    assert digits.prior(name, torch.device("cpu")).n_tokens == 2


@pytest.mark.parametrize("digit", range(10))
def test_examples_are_digits_in_the_middle_that_survive_the_pad(digit):
    grid = digits.example(digit)
    assert torch.equal(digits.read_pad(digits.to_pad(grid)), grid)
    rows = grid.any(dim=1).nonzero()[:, 0]
    assert (
        60 < grid.sum() < 250 and 3 <= rows[0] and rows[-1] <= 24 and not torch.equal(grid, digits.example((digit + 1) % 10))
    )


@pytest.mark.parametrize("text", ["", "0", "0" * 783 + "2", "0" * 785])
def test_what_is_no_drawing_is_a_sentence(text):
    with pytest.raises(ValueError, match="^The drawing has to be 28x28 pixels"):
        digits.read_pad(text)


def test_endings_are_those_of_the_command(model, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid, settings = digits.example(7), Settings(seed=5, temperature=0.8)
    found = digits.endings(model, grid, 20, settings)
    assert torch.equal(found[:, :20], grid[:20].expand(8, -1, -1)) and not torch.equal(found[0], found[1])
    assert torch.equal(found, digits.endings(model, grid, 20, settings))
    save_picture(from_shades(grid, 2), tmp_path / "digit.png")
    words = digits.endings_command("Gated PixelCNN", 20, settings).split()
    done = command(words[2].removeprefix("homework."), *words[3:])
    assert done.returncode == 0, done.stderr
    written = np.stack([np.asarray(Image.open(tmp_path / "endings" / f"sample_{i}.png")) for i in range(8)])
    assert np.array_equal(written, from_shades(found, 2))
    assert digits.sheet(found).shape == (2 * (28 * 4 + 4) + 4, 4 * (28 * 4 + 4) + 4)


@pytest.mark.parametrize("rows, settings, message", [(29, Settings(), "rows is 29"), (3, Settings(top_k=-1), "top_k is -1")])
def test_a_setting_that_makes_no_sense_is_a_sentence(model, rows, settings, message):
    with pytest.raises(ValueError, match=message):
        digits.endings(model, digits.example(1), rows, settings)


@pytest.mark.parametrize("position", [(0, 0), (14, 14), (27, 3), (5, 27)])
def test_the_blind_spot_lies_above_to_the_right(position):
    plain, gated = digits.fields(position, 6)
    assert not (plain & ~gated).any()
    y, x = torch.meshgrid(torch.arange(28) - position[0], torch.arange(28) - position[1], indexing="ij")
    # a 7x7 reaches 3 pixels, each of five 3x3 one more; PixelCNN goes right only where it goes up
    box = ((y < 0) | ((y == 0) & (x < 0))) & (y >= -8) & (x.abs() <= 8)
    assert torch.equal(gated, box) and torch.equal(gated & ~plain, box & (x > 2 - y))
    grid = digits.example(0)
    drawn = digits.draw_field(grid, plain, gated & ~plain, position)
    middle = drawn[digits.SCALE // 2 :: digits.SCALE, digits.SCALE // 2 :: digits.SCALE]  # (28,28,3)
    assert (middle[position] == digits.POSITION).all()
    reds = middle[..., 0] > middle[..., 2]
    reds[position] = False
    assert np.array_equal(reds, (gated & ~plain).numpy())
    n, blind = int(gated.sum()), int((gated & ~plain).sum())
    assert f"sees {n} pixels (blue), PixelCNN {n - blind} of them" in digits.describe(plain, gated, position)


def test_a_click_chooses_the_position_under_it():
    assert digits.at_pixel(0, 0) == (0, 0) and digits.at_pixel(19, 45) == (4, 1) and digits.at_pixel(9999, 9999) == (27, 27)
    assert digits.field_command((4, 1), 3) == ("python -m homework.receptive_field --layers 3 --size 28 --kernel 7 --row 4 "
                                               "--column 1")  # fmt: skip
