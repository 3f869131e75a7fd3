"""Compressed files as a format of Pillow."""

import io
import threading
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, build, run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence, UnidentifiedImageError

from bench.mutations import mutate, repaired
from homework import pillow
from homework.codec import dial
from homework.codec.archive import Reader
from homework.codec.compressor import Compressor
from homework.core.checkpoint import save
from homework.datasets.image_files import read_image
from homework.datasets.images import to_float, to_uint8

SIZES = ((20, 30), (23, 41), (5, 5))  # of images, in pixels: the prior's grid, tiles, one patch
SAMPLE = ROOT / "data/sample/temple.jpg"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, model in ("t.pth", build("BSQPatchAutoEncoder")), ("p.pth", build("AutoregressiveModel")):
        save(model, folder / name)
    return folder / "t.pth", folder / "p.pth"


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return Compressor(build("BSQPatchAutoEncoder"), build("AutoregressiveModel"))


@pytest.fixture(scope="module")
def named(checkpoints) -> list[Compressor]:
    with pytest.MonkeyPatch.context() as context:
        context.setattr(pillow, "_named", [])
        pillow.use(*checkpoints, device="cpu")
        return pillow._named


@pytest.fixture(autouse=True)
def tiny(named, monkeypatch):
    """Files are of tiny models; the pretrained ones are not loaded unless a test asks for them."""

    def unexpected():
        raise AssertionError("The pretrained models were loaded.")

    monkeypatch.setattr(pillow, "_named", [*named])
    monkeypatch.setattr(pillow, "_pretrained", unexpected)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


IMAGES = [noise(*size, 3, seed=i) for i, size in enumerate(SIZES)]


def shown(compressor: Compressor, pixels: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 -> the same as it comes back without a search."""
    data = compressor.compress(to_float(torch.from_numpy(pixels)))
    return to_uint8(compressor.decompress(data)).numpy()


def written(image: Image.Image, format: str = "HWI", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **{"effort": 0} | options)
    return file.getvalue()


def archive_of(images: list[np.ndarray], **options) -> bytes:
    first, *others = map(Image.fromarray, images)
    return written(first, "HWA", save_all=True, append_images=others, **options)


# --- one image ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", IMAGES, ids=[f"{h}x{w}" for h, w in SIZES])
def test_an_image_is_written_and_shown_as_by_the_codec(pixels, compressor, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "x.hwi", effort=0)
    assert (tmp_path / "x.hwi").read_bytes() == compressor.compress(to_float(torch.from_numpy(pixels)))
    with Image.open(tmp_path / "x.hwi") as image:
        assert (image.format, image.mode, image.size) == ("HWI", "RGB", pixels.shape[1::-1])
        assert image.get_format_mimetype() == "image/x-hwi" and not image.is_animated and image.n_frames == 1
        assert np.array_equal(image, shown(compressor, pixels))


def test_opening_reads_the_header_alone(monkeypatch):
    data = written(Image.fromarray(IMAGES[0]))
    monkeypatch.setattr(pillow, "_named", [])  # whatever needs models now fails
    for cut in data, data[:20] + bytes(len(data) - 24) + data[-4:]:
        assert Image.open(io.BytesIO(cut)).size == (30, 20)


def test_the_options_are_those_of_compress(compressor):
    pixels = IMAGES[0][:5, :10]
    image, x = Image.fromarray(pixels), to_float(torch.from_numpy(pixels))
    for options in {"effort": 1, "quality": 1}, {"effort": 1, "quality": 99}:
        assert written(image, **options) == compressor.at(**options).compress(x)
    assert written(image, effort=1, lmbda=0.01) == written(image, effort=1)
    for kind, value in ("psnr", 8), ("bytes", 40):
        target = dial.Target(kind, value)
        assert written(image, effort=1, **{f"target_{kind}": value}) == compressor.at(50, 1, target).compress(x)
    default = io.BytesIO()
    image.save(default, "HWI")
    assert default.getvalue() == written(image, effort=5, quality=50)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"quality": 0, "effort": 1}, "quality is 0, but must be a number from 1 to 100"),
        ({"effort": 10}, "effort is 10, but must be an integer from 0 to 9"),
        ({"effort": 0, "quality": 70}, "use an effort from 1 to 9"),
        ({"effort": 1, "lmbda": "much"}, "lmbda is 'much'"),
        ({"effort": 1, "target_bytes": 9, "target_psnr": 9}, "two aims"),
        ({"effort": 1, "target_bytes": 3}, "never at most 3"),
    ],
)
def test_wrong_options_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Image.fromarray(IMAGES[2]).save(tmp_path / "x.hwi", **options)
    assert not (tmp_path / "x.hwi").exists()


def modes() -> dict[str, Image.Image]:
    """An image of each mode that Pillow writes to a lossless file, some of them transparent."""
    rgba = Image.fromarray(noise(20, 30, 4))
    found = {mode: rgba.convert("RGB").convert(mode) for mode in ("1", "L", "P", "RGB")}
    found |= {"LA": rgba.convert("LA"), "RGBA": rgba, "I;16": Image.fromarray(noise(20, 30).astype(np.uint16) * 257)}
    turned = Image.fromarray(IMAGES[0])
    turned.getexif()[0x0112] = 6
    return found | {"turned": turned}


@pytest.mark.parametrize("name", modes())
def test_all_modes_are_converted_as_files_are(name, compressor, tmp_path):
    image = modes()[name]
    image.save(tmp_path / "x.png", **({"exif": image.getexif()} if name == "turned" else {}))
    before = image.tobytes()
    image.save(tmp_path / "x.hwi", effort=0)
    assert np.array_equal(Image.open(tmp_path / "x.hwi"), shown(compressor, read_image(tmp_path / "x.png")))
    with Image.open(tmp_path / "x.png") as file:
        assert written(file) == (tmp_path / "x.hwi").read_bytes()
    assert image.tobytes() == before and image.size == (30, 20)


@pytest.mark.parametrize("image", [Image.new("F", (5, 5)), Image.new("I", (5, 5)), Image.new("RGB", (0, 5))])
def test_what_cannot_be_written_is_refused(image, tmp_path):
    with pytest.raises(OSError, match="The image (cannot be read: it has floats or 32 bits|has 5x0 pixels)"):
        image.save(tmp_path / "x.hwi")
    assert not (tmp_path / "x.hwi").exists()


# --- archives -------------------------------------------------------------------------------------------------------------


def test_an_archive_is_a_sequence_of_frames_of_any_size(compressor, tmp_path):
    (tmp_path / "x.hwa").write_bytes(archive_of(IMAGES))
    with Image.open(tmp_path / "x.hwa") as file:
        assert (file.format, file.n_frames, file.is_animated, file.tell()) == ("HWA", 3, True, 0)
        for i in (2, 0, 1, 1):
            file.seek(i)
            assert file.tell() == i and file.size == SIZES[i][::-1] and file.info["name"] == f"{i:04}"
            assert np.array_equal(file, shown(compressor, IMAGES[i]))
        with pytest.raises(EOFError):
            file.seek(3)
        assert [frame.size[::-1] for frame in ImageSequence.Iterator(file)] == list(SIZES)
    with pytest.raises(ValueError, match="closed"):
        file.seek(0)
        file.load()


def test_all_frames_are_written_or_the_one_that_is_shown(tmp_path):
    first, *others = map(Image.fromarray, IMAGES)
    first.save(tmp_path / "pages.tif", save_all=True, append_images=others)
    with Image.open(tmp_path / "pages.tif") as pages:
        pages.seek(1)
        assert written(pages, "HWA", save_all=True) == archive_of(IMAGES) and pages.tell() == 1
        assert written(pages, "HWA") == archive_of(IMAGES[1:2]) and written(pages) == written(others[0])
    with Image.open(io.BytesIO(archive_of(IMAGES))) as ours:
        ours.save(tmp_path / "again.tif", save_all=True)
    with Image.open(tmp_path / "again.tif") as pages:
        assert [page.size[::-1] for page in ImageSequence.Iterator(pages)] == list(SIZES)


def test_an_archive_after_other_bytes_has_its_own_positions():
    file = io.BytesIO()
    file.write(b"before")
    Image.fromarray(IMAGES[0]).save(file, "HWA", effort=0)
    assert file.getvalue() == b"before" + archive_of(IMAGES[:1])


def test_frames_are_as_large_as_pillow_allows(monkeypatch):
    data = archive_of([IMAGES[2], IMAGES[1]])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with Image.open(io.BytesIO(data)) as file:
        with pytest.raises(Image.DecompressionBombError):
            file.seek(1)
        assert file.tell() == 0 and np.asarray(file).shape == (5, 5, 3)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(written(Image.fromarray(IMAGES[0]))))


# --- models ---------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_by_whichever_models_in_use_wrote_it(tmp_path, compressor):
    of_first = written(Image.fromarray(IMAGES[0]))
    save(build("AutoregressiveModel", seed=1), tmp_path / "p.pth")
    save(build("BSQPatchAutoEncoder"), tmp_path / "t.pth")
    pillow.use(tmp_path / "t.pth", tmp_path / "p.pth", device="cpu")
    of_second = written(Image.fromarray(IMAGES[0]))
    assert of_first != of_second and len(pillow._named) == 2
    pillow.use(tmp_path / "t.pth", tmp_path / "p.pth", device="cpu")
    assert len(pillow._named) == 2
    for data in of_first, of_second:
        assert np.array_equal(Image.open(io.BytesIO(data)), shown(compressor, IMAGES[0]))


def test_archives_of_priors_in_floats(tmp_path, compressor):
    save(build("BSQPatchAutoEncoder"), tmp_path / "t.pth")
    save(build("GatedPixelCNN"), tmp_path / "p.pth")
    pillow.use(tmp_path / "t.pth", tmp_path / "p.pth", device="cpu")
    with Image.open(io.BytesIO(archive_of(IMAGES))) as file:
        for i, frame in enumerate(ImageSequence.Iterator(file)):
            assert np.array_equal(frame, shown(compressor, IMAGES[i]))


def test_files_of_other_models_open_but_do_not_load(monkeypatch, compressor):
    other = Compressor(build("BSQPatchAutoEncoder", seed=1), build("AutoregressiveModel"))
    monkeypatch.setattr(pillow, "_pretrained", lambda: compressor)
    image = Image.open(io.BytesIO(other.compress(to_float(torch.from_numpy(IMAGES[0])))))
    assert image.size == (30, 20)
    with pytest.raises(OSError, match="written by the tokenizer .... and the prior ...., .* homework.pillow.use"):
        image.load()


def test_missing_models_are_named(monkeypatch, tmp_path, checkpoints):
    data = written(Image.fromarray(IMAGES[0]))
    monkeypatch.setattr(pillow, "_named", [])
    monkeypatch.setattr(pillow, "_pretrained", lambda: pillow._load(tmp_path / "none.pth", checkpoints[1], "cpu"))
    for use in lambda: Image.open(io.BytesIO(data)).load(), lambda: written(Image.fromarray(IMAGES[0])):
        with pytest.raises(FileNotFoundError, match="There is no checkpoint .*none.pth"):
            use()
    with pytest.raises(FileNotFoundError, match="none.pth"):
        pillow.use(tmp_path / "none.pth", checkpoints[1])
    with pytest.raises(ValueError, match="a tokenizer is needed here"):
        pillow.use(checkpoints[1], checkpoints[1])
    monkeypatch.setattr(pillow, "_pretrained", lambda: pillow._load(*checkpoints[::-1], "cpu"))
    with pytest.raises(OSError, match="a tokenizer is needed here"):
        Image.open(io.BytesIO(data)).load()


def test_the_pretrained_models_are_loaded_once(monkeypatch, checkpoints):
    loaded, load = [], pillow._load
    monkeypatch.undo()
    monkeypatch.setattr(pillow, "_named", [])
    monkeypatch.setattr(pillow, "_load", lambda *pair: loaded.append(pair) or load(*checkpoints, "cpu"))
    pillow._pretrained.cache_clear()
    found: list = []
    threads = [threading.Thread(target=lambda: found.append(written(Image.fromarray(IMAGES[0])))) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        pillow._pretrained.cache_clear()
    assert [names[:3] for names in loaded] == [(*pillow.PAIR, "auto")] and len(found) == 4 and len(set(found)) == 1


def test_the_pretrained_pair_in_a_process_of_its_own(tmp_path):
    code = (
        "import homework.pillow; from PIL import Image; "
        f"Image.open({str(SAMPLE)!r}).save('x.hwi', effort=0); again = Image.open('x.hwi'); again.save('x.png')"
    )
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert (tmp_path / "x.hwi").stat().st_size < 500
    difference = np.asarray(Image.open(tmp_path / "x.png")).astype(float) - np.asarray(Image.open(SAMPLE))
    assert 10 * np.log10(255**2 / np.square(difference).mean()) > 24


def test_our_files_are_no_images_of_a_folder(tmp_path, command, checkpoints):
    """Whether or not homework.pillow has been imported: what commands read does not depend on it."""
    (tmp_path / "in").mkdir()
    Image.fromarray(IMAGES[0]).save(tmp_path / "in/a.png")
    Image.fromarray(IMAGES[0]).save(tmp_path / "in/b.hwi", effort=0)
    done = command("compress", *checkpoints, tmp_path / "in", tmp_path / "x.hwa", "--effort", 0)
    assert done.returncode == 0 and "1 other file" in done.stderr, done.stderr
    with open(tmp_path / "x.hwa", "rb") as file:
        assert Reader(file).names == ["a.png"]


# --- hostile files --------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_file_is_said():
    data = written(Image.fromarray(IMAGES[0]))
    for foreign in b"", b"\xb5", b"something else", b"RIFF1234WEBP":
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO(foreign))
    with pytest.raises(OSError, match="The file is cut short"):
        Image.open(io.BytesIO(data[:-5]))
    with pytest.raises(OSError, match="header is not as it was written"):
        Image.open(io.BytesIO(data[:8] + bytes([data[8] ^ 1]) + data[9:]))
    image = Image.open(io.BytesIO(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]))
    for _ in range(2):
        with pytest.raises(OSError, match="damaged"):
            image.load()


def test_the_name_of_a_damaged_file_is_said(tmp_path):
    (tmp_path / "x.hwi").write_bytes(written(Image.fromarray(IMAGES[0]))[:-1])
    for path in tmp_path / "x.hwi", str(tmp_path / "x.hwi").encode():
        with pytest.raises(OSError, match="x.hwi is cut short"):
            Image.open(path)


def frames_of(data: bytes) -> list[bytes]:
    with Image.open(io.BytesIO(data)) as file:
        return [frame.tobytes() for frame in ImageSequence.Iterator(file)]


@cache
def whole(kind: int) -> tuple[bytes, list[bytes]]:
    """A file as it was written, of an image or of all, and its pixels."""
    data = archive_of(IMAGES) if kind == len(IMAGES) else written(Image.fromarray(IMAGES[kind]))
    return data, frames_of(data)


@pytest.mark.parametrize("change", [mutate, repaired], ids=["mutated", "repaired"])
@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), kind=st.integers(0, 3))
def test_a_mutated_file_is_refused_or_still_right(change, seed, kind):
    data, right = whole(kind)
    changed = change(data, np.random.default_rng(seed))
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as context:
        warnings.simplefilter("error")
        context.setattr(pillow, "_pretrained", lambda: pillow._named[0])  # a head that no pair in use wrote asks for it
        try:
            found = frames_of(changed)
        except OSError as error:  # UnidentifiedImageError is one
            assert str(error)
        else:
            assert found == right
