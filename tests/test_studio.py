"""The page of homework.studio: what its tabs compute, without Gradio; and the page itself, in headless Chromium."""

import dataclasses
import io
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GRID, SIZE, K, build, run, sentence
from PIL import Image

from homework.codec.compressor import Compressor
from homework.datasets.images import to_float
from homework.priors import images
from homework.studio_tabs import compression, models, sampling, tokens
from homework.studio_tabs.sampling import Settings

PAIR = "t.pth", "p.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two samples: one as large as the prior's images, one of an odd size in 16 bits of grey."""
    folder, draw = tmp_path_factory.mktemp("studio"), np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / "a.png")
    Image.fromarray(draw.integers(0, 2**16, (33, 17), dtype=np.uint16)).save(folder / "odd.tif")
    return folder


@pytest.fixture(scope="module")
def shared(folder) -> models.Models:
    samples = [str(folder / name) for name in ("a.png", "odd.tif")]
    return models.load(PAIR, build("BSQPatchAutoEncoder").eval(), build("AutoregressiveModel").eval(), samples, folder)


@pytest.fixture
def source(shared) -> models.Source:
    return models.read_source(shared.samples[0])


# --- without Gradio -------------------------------------------------------------------------------------------------------


def test_a_large_image_is_scaled_down_and_a_bad_one_named_without_its_folder(tmp_path):
    Image.new("RGB", (1000, 400), "red").save(tmp_path / "large.bmp")
    found = models.read_source(str(tmp_path / "large.bmp"))
    H, W = found.pixels.shape[:2]
    assert H * W <= models.MOST_PIXELS < 1.02 * H * W and W / H == pytest.approx(2.5, rel=0.02)
    assert found.original == (400, 1000) and found.name == "large.bmp" and (found.pixels == [255, 0, 0]).all()
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"^text.png cannot be read as an image"):
        models.read_source(str(tmp_path / "text.png"))


@pytest.mark.parametrize("sample", [0, 1])
@pytest.mark.parametrize("effort", [0, 2])
def test_the_last_comparison_has_the_file_of_the_command(shared, sample, effort):
    source = models.read_source(shared.samples[sample])
    *_, found = compression.compress(shared, source, 60, effort)
    options = {"effort": effort, "quality": 60} if effort else {}
    expected = Compressor(shared.tokenizer, shared.prior, **options)
    x = to_float(torch.from_numpy(source.pixels))
    assert found.file == expected.compress(x)
    picture, about = compression.open_file(shared, found.file)
    assert np.array_equal(picture, found.pictures["ours"]) and about.startswith(f"{len(found.file)} bytes")
    assert all(picture.shape == source.pixels.shape for picture in found.pictures.values())
    assert "| ours |" in compression.table(found)


def test_other_codecs_are_beside_ours_and_encode_each_quality_once(shared, source, monkeypatch):
    *_, found = compression.compress(shared, source, 50, 0)
    for codec in compression.rivals():
        tried = {}
        more = compression.add_codec(found, codec, tried)
        assert more.rows[-1].name == codec.name and more.pictures[codec.name].shape == source.pixels.shape
        before = dict(tried)
        assert compression.add_codec(found, codec, tried).rows[-1] == more.rows[-1] and tried == before
        small = more.rows[-1].n_bytes > len(found.file)
        assert (f"{codec.name} cannot make it so small" in compression.remarks(shared, more, 0)) == small
    for dial, effort, counts in (False, 0, False), (False, 1, True), (True, 0, True):
        monkeypatch.setattr(shared.tokenizer, "has_dial", dial)
        assert ("Effort 0" in compression.remarks(shared, found, effort)) != counts
        assert ("--quality" in compression.command(shared, source, 60, effort)) == counts


def test_the_map_of_errors_is_the_mean_over_each_patch():
    x = np.zeros((7, 10, 3), np.uint8)
    y = x.copy()
    y[5:, 5:] = 51  # 0.2 in the last patch, which the image cuts off
    found = compression.error_map(x, y, 5)
    assert found.shape == (2, 2) and found[1, 1] == pytest.approx(0.04) and found.sum() == pytest.approx(0.04)


@pytest.mark.parametrize("data", [b"", b"nothing of ours", b"HW\x00"])
def test_a_damaged_file_is_a_sentence(shared, data):
    with pytest.raises(ValueError, match=r"^The file .*"):
        compression.open_file(shared, data)


def test_images_grow_row_by_row_into_those_of_the_command(shared):
    settings = Settings(seed=3, temperature=0.9, top_k=5, top_p=0.95)
    grown = list(sampling.grow(shared, 3, settings))
    assert [part.grids.shape[1] for part in grown] == [*range(1, GRID[0] + 1)] and grown[-1].complete
    expected = shared.prior.generate(3, *GRID, temperature=0.9, top_k=5, top_p=0.95,
                                     generator=torch.Generator().manual_seed(3))  # fmt: skip
    assert torch.equal(grown[-1].grids, expected) and grown[-1].pictures.shape == (3, *SIZE, 3)
    assert (grown[0].pictures[:, 5:] == 128).all() and not (grown[0].pictures[:, :5] == 128).all()
    assert sampling.surprise(shared, grown[-1]).count("nats") == 3
    assert sampling.surprise(shared, grown[0]) == "1 of 4 rows"
    words = sampling.generate_command(shared, 3, settings)
    assert words == ("python -m homework.generation t.pth p.pth 3 generated --seed 3 --temperature 0.9 --top_k 5 "
                     "--top_p 0.95")  # fmt: skip


def test_of_the_candidates_those_of_the_command_are_kept(shared):
    settings = Settings(seed=1)
    grown = list(sampling.grow(shared, 2, settings, candidates=3))
    assert [len(part.grids) for part in grown] == [6] * GRID[0] + [2] and grown[-1].pictures.shape == (2, *SIZE, 3)
    options = {"candidates": 3, "seed": 1}
    ((expected, pictures),) = images.generate_images(shared.tokenizer, shared.prior, 2, SIZE, **options)
    assert torch.equal(grown[-1].grids, expected) and np.array_equal(grown[-1].pictures, pictures.numpy())
    assert sampling.generate_command(shared, 2, settings, 3).endswith("2 generated --seed 1 --candidates 3")


def test_all_images_are_in_the_archive(shared, tmp_path):
    *_, last = sampling.grow(shared, 3, Settings())
    sampling.write_archive(last, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"generation_{i}.png" for i in range(3)]
        found = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()]
    assert np.array_equal(found, last.pictures)


@pytest.mark.parametrize("names", models.PAIRS)
def test_another_pair_can_be_taken_and_its_images_are_of_it(shared, names):
    assert models.with_pair(shared, shared.names) is shared
    other = models.with_pair(shared, names)
    assert other is models.with_pair(shared, names) and other.size == (100, 150) and other.samples == shared.samples
    assert sampling.generate_command(other, 1, Settings()).split()[3:5] == list(names)


@pytest.mark.parametrize("settings, message", [(Settings(seed=-1), "seed is -1"), (Settings(top_p=2.0), "top_p is 2"),
                                               (Settings(temperature=-1.0), "temperature is -1")])  # fmt: skip
def test_a_setting_that_makes_no_sense_is_a_sentence(shared, settings, message):
    with pytest.raises(ValueError, match=message):
        next(sampling.grow(shared, 1, settings))


@pytest.mark.parametrize("rows", [0, 2, GRID[0]])
def test_endings_keep_the_first_rows(shared, source, rows):
    *_, (sheet, grown) = sampling.complete(shared, source, rows, Settings())
    encoded = shared.tokenizer.encode_index(to_float(models.fitted(source, SIZE)))
    assert torch.equal(grown.grids[:, :rows], encoded[:rows].expand(4, -1, -1)) and grown.complete
    assert sheet.shape == (3 * (SIZE[0] + 4) + 4, 2 * (SIZE[1] + 4) + 4, 3)


def test_tokens_can_be_looked_at_and_replaced(shared, source):
    view = tokens.at_pixel(shared, tokens.start(shared, source), 5 * tokens.SCALE * 3 + 1, 5 * tokens.SCALE * 2 - 1)
    assert view.position == (1, 3) and tokens.at_pixel(shared, view, 10**6, 10**6).position == (GRID[0] - 1, GRID[1] - 1)
    found = tokens.alternatives(shared, view)
    p = tokens.probabilities(shared, view)
    assert p.shape == (K,) and float(p.sum()) == pytest.approx(1)
    assert [one.probability for one in found] == p.sort(descending=True).values[: len(found)].tolist()
    other = next(one.token for one in found if one.token != view.grid[view.position])
    changed = tokens.replace(view, other)
    assert (changed.grid != view.grid).sum() == 1 and changed.grid[1, 3] == other
    assert torch.equal(view.grid, view.encoded)  # of another user, maybe
    assert "the encoder's tokens" in tokens.balance(shared, view)
    assert "1 of 24 tokens changed" in tokens.balance(shared, changed)
    assert f"token {other}, code {other:04b}" in tokens.describe(shared, changed)
    drawn = tokens.draw(shared, view)
    assert drawn.shape == (SIZE[0] * tokens.SCALE, SIZE[1] * tokens.SCALE, 3)
    assert (drawn[5 * tokens.SCALE, 15 * tokens.SCALE] == tokens.FRAME).all()


def test_a_position_or_a_token_that_is_none_is_a_sentence(shared, source):
    view = tokens.start(shared, source)
    assert tokens.at_position(view, 3, 5).position == (3, 5) and tokens.put(shared, view, K - 1).grid[view.position] == K - 1
    for wrong, message in [(lambda: tokens.at_position(view, GRID[0], 0), f"The row is {GRID[0]}, but must be an integer"),
                           (lambda: tokens.at_position(view, 0, -1), "The column is -1, but must be an integer"),
                           (lambda: tokens.put(shared, view, K), f"The token is {K}, but must be an integer")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            wrong()


def test_flips_are_the_tokens_with_one_other_bit(shared, source):
    view = tokens.start(shared, source)
    token, found = int(view.grid[view.position]), tokens.flips(shared, view)
    assert [one.bit for one in found] == [3, 2, 1, 0]
    bits, psnr = tokens.cost(shared, view, view.grid)
    for index, one in enumerate(found):
        flipped = tokens.flip(shared, view, index)
        assert int(flipped.grid[view.position]) ^ token == 2**one.bit and int((flipped.grid != view.grid).sum()) == 1
        expected = tokens.cost(shared, view, flipped.grid)
        assert (bits + one.bits, psnr + one.psnr) == pytest.approx(expected, rel=1e-5)
        assert np.array_equal(one.picture, tokens.around(shared, view, tokens.decoded(shared, flipped.grid[None], view)[0]))
    assert tokens.draw_lattice(shared, view) is None


def test_the_units_of_a_map_can_be_looked_at_and_put_in(folder, source):
    som = build("SOM", n_codes=14, lattice="4x4", kept=[k for k in range(16) if k not in (5, 6)]).eval()
    mapped = models.load(PAIR, som, build("AutoregressiveModel", n_tokens=14).eval(), [], folder)
    view = tokens.replace(tokens.start(mapped, source), 4)  # unit 4 is the fifth that is left: at row 1, column 0
    drawn = tokens.draw_lattice(mapped, view)
    assert drawn.shape == (20, 20, 3) and not tokens.flips(mapped, view)
    assert (drawn == tokens.FRAME).all(axis=2).sum() == 4 * 5 - 4 and (drawn[5, :5] == tokens.FRAME).all()
    chosen = tokens.replace_by_unit(mapped, view, 19, 7)  # row 1, column 3
    assert chosen.grid[view.position] == 5 and (tokens.draw_lattice(mapped, chosen)[5, 15:] == tokens.FRAME).all()
    assert torch.equal(tokens.replace_by_unit(mapped, view, 7, 7).grid, view.grid)  # a unit that was pruned


def test_gradio_is_imported_without_its_type_stubs(tmp_path):
    pytest.importorskip("gradio", reason='there is no gradio; pip install "homework[studio]"')
    (tmp_path / "a.py").write_text("""
import sys
from homework.studio_tabs import stubs
stubs.leave_out()
import gradio, gradio.component_meta as module
assert module.create_or_modify_pyi(None) is None and not any(type(f).__name__ == "WithoutStubs" for f in sys.meta_path)
with gradio.Blocks() as page:
    text = gradio.Textbox(label="a", value="b")
    text.change(print)
assert text.get_config()["label"] == "a" and len(page.fns) == 1
stubs.leave_out()  # does nothing now
assert not any(type(f).__name__ == "WithoutStubs" for f in sys.meta_path)
""")
    done = run("a.py", cwd=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr


def test_the_command_imports_gradio_without_its_type_stubs_and_without_telemetry(tmp_path):
    pytest.importorskip("gradio", reason='there is no gradio; pip install "homework[studio]"')
    (tmp_path / "a.py").write_text("""
import os, sys
from homework import studio
def stop(*_):
    raise SystemExit(5)
studio.load_pair = stop
try:
    studio.studio()
except SystemExit:
    import gradio.component_meta
    assert gradio.component_meta.create_or_modify_pyi(None) is None
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and os.environ["HF_HUB_OFFLINE"] == "1"
    sys.exit(5)
""")
    done = run("a.py", cwd=tmp_path, fresh=True)
    assert done.returncode == 5, done.stderr


def test_without_gradio_a_sentence_says_what_to_install(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    message = sentence(command("studio"))
    assert message == 'This command needs the package gradio; pip install "homework[studio]".'


def test_a_port_that_is_none_is_a_sentence(command):
    assert "--port is 0, but must be an integer from 1 to 65535" in sentence(command("studio", "--port", 0))


# --- the page -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(shared, folder):
    pytest.importorskip("gradio", reason='there is no gradio; pip install "homework[studio]"')
    with pytest.MonkeyPatch.context() as context:
        context.setenv("GRADIO_TEMP_DIR", str(folder))
        for variable in "no_proxy", "NO_PROXY":  # to be put back
            context.setenv(variable, "")
        from homework.studio_tabs import page

        served, address = page.launch(shared, "127.0.0.1", None)
        yield address
        served.close(verbose=False)


@pytest.fixture
def window(address, chromium):
    """The page, loaded; nothing may come from another machine, and no script may fail."""
    page, wrong = chromium.new_page(viewport={"width": 1200, "height": 900}), []
    page.set_default_timeout(180_000)  # on a busy machine
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    page.locator("#table td", has_text="ours").wait_for()
    yield page
    page.close()
    assert not wrong


def src(page, where: str) -> str:
    return page.locator(f"{where} img").first.get_attribute("src")


def test_compress(window, folder):
    command = window.locator(".cm-content:visible")
    assert "a.png image.hwi --effort 2 --quality 50" in command.inner_text()
    window.locator("#quality input[type=range]").focus()
    window.keyboard.press("ArrowRight")
    window.locator(".cm-content:visible", has_text="--quality 51").wait_for()
    window.locator("input[type=file]").first.set_input_files(folder / "odd.tif")
    window.locator(".cm-content:visible", has_text="odd.tif image.hwi").wait_for()  # the table is of this image now
    window.locator("#table td", has_text=compression.rivals()[-1].name).wait_for()  # nothing is drawn again from now on
    # by a key: the box of the command is measured anew as it comes into view, which makes the page shorter, and at its end a
    # button can move away between a mouse's down and up
    with window.expect_download() as download:
        window.get_by_role("button", name="Download image.hwi").press("Enter")
    data = Path(download.value.path()).read_bytes()
    window.get_by_text("Look at a file").click()
    drop, picture = window.locator("#open input[type=file]"), window.locator("#open img")
    for name, content in ("x.hwi", data), ("damaged.hwi", data[:-3] + b"abc"):
        drop.set_input_files({"name": name, "mimeType": "application/octet-stream", "buffer": content})
        if content is data:
            picture.wait_for()
            window.locator("#open").get_by_label("Clear").click()
    window.locator(".toast-body", has_text="The file").wait_for()
    picture.wait_for(state="detached")
    assert "Traceback" not in window.content()


def test_generate_twice_and_complete(window):
    shown, nats = [], window.locator(".costs.prose:visible", has_text="nats")
    for seed in "787":
        before = nats.inner_text() if shown else ""
        window.get_by_role("tab", name="Generate").click()
        window.get_by_label("Seed").locator("visible=true").fill(seed)
        window.get_by_role("button", name="Generate", exact=True).click()
        window.locator(".cm-content:visible", has_text=f"--seed {seed}").wait_for()
        for _ in range(600):  # the nats are there with the whole picture, and those of another seed are others
            nats.wait_for()
            if nats.inner_text() != before:
                break
            window.wait_for_timeout(100)
        window.wait_for_timeout(300)
        shown.append(window.request.get(src(window, "#generated")).body())
    with window.expect_download() as download:
        window.get_by_role("button", name="Download all images").press("Enter")
    assert len(zipfile.ZipFile(download.value.path()).namelist()) == 4
    window.get_by_label("Seed").locator("visible=true").fill("-1")
    window.get_by_role("button", name="Generate", exact=True).click()
    window.locator(".toast-body", has_text="--seed is -1, but must be an integer from 0").wait_for()
    assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(data))) for data in shown[::2])) and shown[1] != shown[0]
    window.get_by_label("Seed").locator("visible=true").fill("0")

    def choose(field: str, name: str, prior: str) -> None:
        window.get_by_label(field, exact=True).click()
        window.get_by_role("option", name=name, exact=True).click()
        window.wait_for_function("prior => [...document.querySelectorAll('input')].some(i => i.value == prior)", arg=prior)

    choose("Tokenizer", "BSQPatchAutoEncoder", "AutoregressiveModel")  # the first prior over its grids
    choose("Prior", "VQGatedPixelCNN", "VQGatedPixelCNN")
    window.get_by_role("button", name="Generate", exact=True).click()
    window.locator(".toast-body", has_text="VQGatedPixelCNN was trained on the grids of another tokenizer").wait_for()
    window.get_by_role("tab", name="Complete").click()
    window.get_by_role("button", name="Complete", exact=True).click()
    window.locator(".costs.prose:visible", has_text="nats").wait_for()


def click_token(window, row: int, column: int) -> None:
    """Again, if the page was not ready: a tab that is looked at for the first time draws its picture anew."""
    grid, shown = window.locator("#grid img"), window.locator("#token", has_text=f"Row {row}, column {column}")
    for _ in range(20):
        box = grid.bounding_box()
        grid.click(position={"x": box["width"] * (column + 0.5) / GRID[1], "y": box["height"] * (row + 0.5) / GRID[0]})
        for _ in range(100):
            if shown.count():
                return
            window.wait_for_timeout(100)
    raise AssertionError(f"row {row}, column {column} is not shown")


def test_tokens(window):
    window.get_by_role("tab", name="Tokens").click()
    click_token(window, 1, 3)
    window.locator("#alternatives button img").nth(9).click()
    window.get_by_text("1 of 24 tokens changed").wait_for()
    code = window.locator("#token").inner_text().split("code ")[1][:4]
    window.locator("#flips button", has_text="bit 2:").click()
    flipped = f"{code[0]}{1 - int(code[1])}{code[2:]}"
    window.locator("#token", has_text=f"code {flipped}").wait_for()
    window.get_by_role("button", name="Back to the encoder's tokens").click()
    window.get_by_text("dB: the encoder's tokens").wait_for()


def test_digits(window):
    """A digit is drawn by the mouse and by the keyboard, and ended twice by one seed; what is seen of the
    pixel under the pointer is shown."""
    window.get_by_role("tab", name="Digits").click()
    downloaded = [b""]

    def drawn() -> np.ndarray:  # once it is another one
        for _ in range(50):
            with window.expect_download() as download:
                window.get_by_role("button", name="Download digit.png").press("Enter")
            data = Path(download.value.path()).read_bytes()
            if data != downloaded[-1]:
                break
            window.wait_for_timeout(100)
        downloaded.append(data)
        return np.asarray(Image.open(io.BytesIO(data)))

    window.locator("#field", has_text="Row 14, column 14").wait_for()
    assert drawn().any()  # an example
    window.get_by_role("button", name="Clear").click()
    assert not drawn().any()
    pad = window.locator("#pad canvas")
    box = pad.bounding_box()
    cell = box["width"] / 28
    window.mouse.move(box["x"] + 8.5 * cell, box["y"] + 5.5 * cell)
    window.mouse.down()
    window.mouse.move(box["x"] + 18.5 * cell, box["y"] + 5.5 * cell)
    window.mouse.up()
    line = drawn() > 0
    assert line[5, 8:19].all() and line[4:7, 9:18].all() and line.sum() == 3 * 11 + 2
    pad.focus()
    for key in ["ArrowDown"] * 3 + ["Space"]:
        window.keyboard.press(key)
    dotted = drawn() > 0
    assert (dotted != line).sum() == 5 and dotted[10, 14] and dotted[9:12, 14].all()
    shown = []
    for seed in "787":
        window.get_by_label("Seed").locator("visible=true").fill(seed)
        window.get_by_role("button", name="End it in eight ways").click()
        window.locator(".cm-content:visible", has_text=f"--seed {seed}").wait_for()
        window.wait_for_timeout(300)
        shown.append(window.request.get(src(window, "#endings")).body())
    assert shown[0] == shown[2] != shown[1]
    field = window.locator(".field img").first
    for row, column, point, width in (9, 5, field.hover, 1600), (11, 7, field.hover, 800), (20, 3, field.click, 1280):
        window.set_viewport_size({"width": width, "height": 720})
        field.scroll_into_view_if_needed()
        box = field.bounding_box()  # the square picture is in its middle
        pixel = min(box["width"], box["height"]) / 28
        x, y = ((box[side] / 2 + (at - 13.5) * pixel) for side, at in (("width", column), ("height", row)))
        point(position={"x": x, "y": y})
        window.locator("#field", has_text=f"Row {row}, column {column} ").wait_for()
    window.locator(".cm-content:visible", has_text="--row 20 --column 3").wait_for()


def test_two_people_do_not_disturb_each_other(window, address, chromium):
    other = chromium.new_context().new_page()
    other.goto(address)
    other.locator("#table td", has_text="ours").wait_for()
    other.get_by_role("tab", name="Tokens").click()
    window.get_by_role("tab", name="Tokens").click()
    click_token(other, 0, 0)
    window.locator("#token", has_text="Row 2, column 3").wait_for()
    other.close()


def test_a_run_can_be_stopped_and_does_not_block_other_tabs(window, shared, monkeypatch):
    (part,), begun = list(sampling.grow(shared, 1, Settings()))[:1], []

    def slowly(*arguments):
        for _ in range(600):
            begun.append(time.sleep(0.1))
            yield part

    window.get_by_role("tab", name="Tokens").click()
    window.locator("#grid img").wait_for()
    monkeypatch.setattr(sampling, "grow", slowly)
    window.get_by_role("tab", name="Generate").click()
    window.get_by_role("button", name="Generate", exact=True).click()
    window.locator(".costs.prose:visible", has_text="1 of 4 rows").wait_for()
    window.get_by_role("tab", name="Tokens").click()
    window.locator("#grid img").click(position={"x": 5, "y": 5})
    window.locator("#token", has_text="Row 0, column 0").wait_for()
    window.get_by_role("tab", name="Generate").click()
    window.get_by_role("button", name="Stop").locator("visible=true").click()
    window.wait_for_timeout(500)
    n = len(begun)
    window.wait_for_timeout(500)
    assert len(begun) == n < 600


def test_a_port_that_is_taken_is_a_sentence(shared, address):
    from homework.studio_tabs import page

    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match=f"port {port}: is it taken"):
        page.launch(shared, "127.0.0.1", port)


def test_without_samples_the_page_waits_for_an_image(shared, address, chromium, folder):
    from homework.studio_tabs import page

    served, other = page.launch(dataclasses.replace(shared, samples=()), "127.0.0.1", None)
    window = chromium.new_page()
    window.goto(other)
    window.locator("#table p", has_text="There is no image yet; drop one.").wait_for()
    assert not window.locator(".toast-body").count()
    window.locator("input[type=file]").first.set_input_files(folder / "odd.tif")
    window.locator("#table td", has_text="ours").wait_for()
    window.close()
    served.close(verbose=False)
