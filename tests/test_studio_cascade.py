"""The tab Coarse to fine of homework.studio: what it computes, without Gradio; and the page itself, in headless Chromium."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GRID, SIZE, K, build
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from homework.core import checkpoint
from homework.priors.cascade import Cascade
from homework.priors.pairs import load_cascade
from homework.studio_tabs import coarse_to_fine, models

BOOKS = {"map": ("map", 7, (1, 1)), "coarse": (2, 20, (2, 3)), "fine": (1, K, GRID)}  # patch, codes, size of the grid


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the untrained models of a cascade, cascade.json, and an image a.png."""
    folder, draw = tmp_path_factory.mktemp("cascade"), np.random.default_rng(0)
    ae, stages, books = build("PatchAutoEncoder", bottleneck=3), [], list(BOOKS.items())
    for name, (patch, codes, _) in books:
        book = build("SOM", patch=patch, n_codes=codes)
        book.set_autoencoder(ae)
        checkpoint.save(book, folder / f"{name}.pth")
    for k, ((coarse, (_, few, (hc, wc))), (fine, (_, many, (h, w)))) in enumerate(zip(books, books[1:], strict=False)):
        sizes = {"height": h, "width": w, "coarse_height": hc, "coarse_width": wc}
        checkpoint.save(build("CascadeStage", num_enc_layers=k, n_tokens=many, coarse_tokens=few, **sizes),
                        folder / f"stage{k}.pth")  # fmt: skip
        paths = {"model_path": f"stage{k}.pth", "lr_codebook_path": f"{coarse}.pth", "hr_codebook_path": f"{fine}.pth"}
        stages.append(paths)
    (folder / "cascade.json").write_text(json.dumps({"stages": stages}))
    Image.fromarray(draw.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / "a.png")
    with pytest.MonkeyPatch.context() as context:
        context.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def cascade(place) -> Cascade:
    return load_cascade("cascade.json")


# --- without Gradio -------------------------------------------------------------------------------------------------------


def test_a_seed_gives_what_the_command_gives_from_the_same_condition(cascade):
    view = coarse_to_fine.replace(coarse_to_fine.start(cascade), 3)
    *_, last = coarse_to_fine.refine(view, 69)
    expected = cascade.generate(torch.tensor([[[3]]]), torch.Generator().manual_seed(69))
    assert all(torch.equal(grid[None], other) for grid, other in zip(last.grids, expected, strict=True))
    words = "python -m homework.generation cascade --config c.json --num_images 1 --condition 3 --seed 69"
    assert coarse_to_fine.command(view, "c.json", 69).startswith(words)
    assert "this page alone" in coarse_to_fine.command(coarse_to_fine.at_level(last, 1), "c.json", 69)


@settings(max_examples=8)
@given(level=st.integers(0, 2), seed=st.integers(0, 99))
def test_coarser_grids_are_kept_and_finer_ones_drawn_again(cascade, place, level, seed):
    view = coarse_to_fine.at_level(coarse_to_fine.encoded(cascade, models.read_source("a.png")), level)
    steps = list(coarse_to_fine.refine(view, seed))
    assert [len(step.grids) for step in steps] == [*range(level + 2, 4)]
    for step in steps:
        assert all(map(torch.equal, step.grids[: level + 1], view.grids))
        assert [picture.shape for picture in coarse_to_fine.pictures(step)] == len(step.grids) * [(*SIZE, 3)]


def test_a_drawn_token_replaces_the_finer_grids(cascade):
    view = coarse_to_fine.at_level(coarse_to_fine.encoded(cascade, models.read_source("a.png")), 1)
    assert "Bits of the grids" in coarse_to_fine.describe(view)
    changed = coarse_to_fine.replace(coarse_to_fine.at_pixel(view, 10**6, 0), 19)
    assert len(changed.grids) == 2 and changed.grids[1][0, 2] == 19 and coarse_to_fine.describe(changed).endswith("code 19")
    with pytest.raises(ValueError, match="There is no grid of 4x6 yet; sample it first."):
        coarse_to_fine.at_level(changed, 2)
    with pytest.raises(ValueError, match="--seed is -1"):
        next(coarse_to_fine.refine(changed, -1))
    with pytest.raises(ValueError, match="The code is 20, but must be an integer from 0 to 19"):
        coarse_to_fine.replace(changed, 20)
    assert coarse_to_fine.at_position(changed, 1, 2).position == (1, 2)
    with pytest.raises(ValueError, match="The column is 3, but must be an integer from 0 to 2"):
        coarse_to_fine.at_position(changed, 1, 3)
    picture = coarse_to_fine.pictures(changed)[1]
    assert coarse_to_fine.draw(changed, picture).shape == (6 * SIZE[0], 6 * SIZE[1], 3)


@pytest.mark.parametrize("level", range(3))
def test_every_code_on_the_sheet_is_found_by_its_pixels(cascade, level):
    sheet, found = coarse_to_fine.sheet(cascade, level), set()
    for y in range(4, sheet.shape[0], 8):
        found |= {coarse_to_fine.code_at(cascade, level, x, y) for x in range(4, sheet.shape[1], 8)}
    assert found - {None} == set(range(cascade.codebooks[level].n_tokens))
    book = build("BSQPatchAutoEncoder")  # any tokenizer may be a codebook
    assert sorted(book.code_layout().flatten().tolist()) == list(range(K))


# --- the page -------------------------------------------------------------------------------------------------------------


def test_the_page(place, chromium, monkeypatch):
    pytest.importorskip("gradio", reason='there is no gradio; pip install "homework[studio]"')
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(place / "temporary"))
    for variable in "no_proxy", "NO_PROXY":  # to be put back
        monkeypatch.setenv(variable, "")
    from homework.studio_tabs import page

    pair = build("BSQPatchAutoEncoder").eval(), build("AutoregressiveModel").eval()
    served, address = page.launch(models.load(("t.pth", "p.pth"), *pair, ["a.png"], place / "temporary"), "127.0.0.1", None)
    window = chromium.new_page(viewport={"width": 1200, "height": 900})
    window.set_default_timeout(180_000)
    window.goto(address)
    window.get_by_role("tab", name="Coarse to fine").click()
    window.locator("#cascade", has_text="cascade.json: grids of 1x1, 2x3, 4x6 for images of").wait_for()  # by itself
    window.get_by_label("The cascade's JSON file").fill("none.json")
    window.get_by_role("button", name="Open", exact=True).click()
    window.locator(".toast-body", has_text="No such file or directory: none.json.").wait_for()
    window.get_by_label("The cascade's JSON file").fill("cascade.json")  # what was opened is still open
    sheet = window.locator("#codes img").bounding_box()
    window.locator("#codes img").click(position={"x": sheet["width"] / 2, "y": sheet["height"] / 2})
    window.get_by_role("button", name="Sample the finer grids").click()
    window.locator("#code", has_text="Bits of the grids").wait_for()
    window.locator("#stages img").nth(2).wait_for()
    code = window.locator("#code").inner_text().partition("code ")[2].partition(".")[0]
    assert code != "0" and f"--condition {code} --seed 0" in window.locator(".cm-content:visible").inner_text()
    window.locator("#level label", has_text="2x3").click()
    window.locator("#code", has_text="Row 0, column 0 of 2x3").wait_for()
    box = window.locator("#drawn img").bounding_box()
    window.locator("#drawn img").click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.9})
    window.locator("#code", has_text="Row 1, column 2 of 2x3").wait_for()
    window.get_by_label("Row", exact=True).locator("visible=true").fill("0")
    window.locator("#code", has_text="Row 0, column 2 of 2x3").wait_for()
    window.get_by_label("Code", exact=True).locator("visible=true").fill("11")
    window.locator("#code", has_text="Row 0, column 2 of 2x3: code 11").wait_for()
    assert "Traceback" not in window.content()
    window.close()
    served.close(verbose=False)
