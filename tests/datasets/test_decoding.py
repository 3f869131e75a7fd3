"""Image files as they are: every depth, colour space, orientation and frame is right, or is refused by name."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, TiffImagePlugin, features

from homework.datasets import decoding, image_files
from homework.datasets.decoding import readable_suffixes
from homework.datasets.image_files import decoded, image_paths, not_read, read_image

FAULTS = ROOT.parent / "shared" / "faults" / "images"
SIZE = (6, 8)


def noise(*shape: int, high: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape)


# --- depth ----------------------------------------------------------------------------------------------------------------


def packed(numbers: np.ndarray, bits: int, order: str) -> bytes:
    """Rows of numbers of so many bits, each row padded to whole bytes."""
    if bits in (8, 16, 32):
        return numbers.astype(f"{order}u{bits // 8}").tobytes()
    digits = ["".join(f"{n:0{bits}b}" for n in row) for row in numbers.tolist()]
    return b"".join(int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in digits)


def tiff(pixels: np.ndarray, bits: int, order: str, tags: dict[int, list[int]], in_planes: bool, deflated: bool) -> bytes:
    """A TIFF file of (H,W,C) numbers, with further ``tags``."""
    H, W, C = pixels.shape
    planes = [pixels[..., c] for c in range(C)] if in_planes else [pixels.reshape(H, W * C)]
    strips = [packed(plane, bits, order) for plane in planes]
    strips = [zlib.compress(strip) if deflated else strip for strip in strips]
    ends = np.cumsum([8, *map(len, strips)]).tolist()
    entries = {256: [W], 257: [H], 258: [bits] * C, 259: [8 if deflated else 1], 273: ends[:-1], 277: [C], 278: [H],
               279: [len(strip) for strip in strips], 284: [1 + in_planes], **tags}  # fmt: skip
    start = ends[-1] + ends[-1] % 2
    behind, directory = b"", struct.pack(f"{order}H", len(entries))
    for tag, values in sorted(entries.items()):
        data = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            at = start + 2 + 12 * len(entries) + 4 + len(behind)
            behind, data = behind + data, struct.pack(f"{order}I", at)
        directory += struct.pack(f"{order}HHI", tag, 4, len(values)) + data
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return (head + b"".join(strips)).ljust(start, b"\0") + directory + bytes(4) + behind


@settings(max_examples=150)
@given(
    bits=st.sampled_from([1, 2, 4, 6, 8, 9, 10, 12, 14, 16, 24, 32]),
    meaning=st.sampled_from([0, 1, 2]),  # white is 0, black is 0, RGB
    alpha=st.booleans(),
    kind=st.sampled_from([None, 1, 2, 3]),  # of numbers: unsigned by default, unsigned, signed, floats
    used=st.sampled_from([None, 10, 12]),  # bits, as the largest value says
    order=st.sampled_from("<>"),
    in_planes=st.booleans(),
    deflated=st.booleans(),
)
def test_a_tiff_of_any_depth_is_right_or_refused_by_name(
    tmp_path_factory, bits, meaning, alpha, kind, used, order, in_planes, deflated
):
    C = (3 if meaning == 2 else 1) + alpha
    assume((used is None or used < bits) and not (in_planes and C == 1) and (deflated is False or bits <= 16))
    white = 2 ** (used or bits) - 1
    pixels = noise(3, 5, C, high=white + 1)
    tags = {262: [meaning], **({338: [2]} if alpha else {}), **({339: [kind] * C} if kind else {}),
            **({281: [white] * C} if used else {})}  # fmt: skip
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    path.write_bytes(tiff(pixels, bits, order, tags, in_planes, deflated))
    levels = pixels * 255 / white
    colours = 255 - levels[..., : C - alpha] if meaning == 0 else levels[..., : C - alpha]
    opaque = levels[..., -1:] / 255 if alpha else 1
    try:
        image = read_image(path)
    except ValueError as error:
        what = "floats or 32 bits a pixel" if "pixel" in str(error) else f"{bits} bits a channel"
        assert "a.tif cannot be read: it has " in str(error) and what in str(error)
        assert (kind or 1) > 1 or bits not in (1, 8, 16) or C > 1 or (bits, meaning) == (16, 0), "this is a common one"
    else:
        assert np.abs(image - (colours * opaque + 255 * (1 - opaque))).max() < 1.6


def test_what_a_damaged_file_has_in_thousands_is_not_listed(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(noise(3, 5, 1, high=256), 8, "<", {258: range(1, 3000), 339: range(1, 3000)}, False, False))
    with pytest.raises(ValueError, match=r"a.tif cannot be read: it has 1 and 2 and 3 and others bits a channel") as error:
        read_image(path)
    assert len(str(error.value)) < 400


GREYS = [("a.pgm", 1023), ("a.pgm", 4095), ("a.pgm", 65535), ("a.png", 65535), ("a.jp2", 65535)]


@pytest.mark.parametrize("name, white", GREYS)
def test_greys_of_more_than_8_bits_in_other_formats(tmp_path, name, white):
    grey = np.linspace(0, white, 64).astype(np.uint16).reshape(8, 8)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 8 8 %d\n" % white + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey).save(tmp_path / name)
    assert np.abs(read_image(tmp_path / name)[..., 0] - grey * 255.0 / white).max() < 1.1


def png(numbers: np.ndarray, bits: int, kind: int, clear: bytes) -> bytes:
    """A PNG file of (H,W,C) numbers of so many bits, with tRNS."""
    H, W, C = numbers.shape
    rows = [b"\0" + packed(row.reshape(1, -1), bits, ">") for row in numbers]
    chunks = {b"IHDR": struct.pack(">IIBBBBB", W, H, bits, kind, 0, 0, 0), b"tRNS": clear,
              b"IDAT": zlib.compress(b"".join(rows)), b"IEND": b""}  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks.items())


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_of_any_depth_is_white(tmp_path, bits):
    white = 2**bits - 1
    grey = noise(16, 16, 1, high=white + 1)
    for clear in (0, white // 2, white, int(grey[3, 3, 0])):
        (tmp_path / "a.png").write_bytes(png(grey, bits, 0, struct.pack(">H", clear)))
        expected = np.where(grey == clear, 255, grey * 255.0 / white)
        assert np.abs(read_image(tmp_path / "a.png") - expected).max() < 1.1


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_colour_of_a_png_is_white_or_refused_by_name(tmp_path, bits):
    colours = noise(5, 5, 3, high=2**bits)
    colours[0, 1] = colours[0, 0] ^ 1  # of which the upper bytes are those of the clear one
    (tmp_path / "a.png").write_bytes(png(colours, bits, 2, struct.pack(">3H", *colours[0, 0])))
    if bits == 16:
        with pytest.raises(ValueError, match="a.png cannot be read: it has 16 bits a channel, and one colour for what is"):
            read_image(tmp_path / "a.png")
    else:
        colours[0, 0] = 255
        assert np.array_equal(read_image(tmp_path / "a.png"), colours)


@pytest.mark.parametrize("suffix, head", [("jp2", b"ihdr"), ("j2k", b"\xff\x51")])
@pytest.mark.parametrize("bits, mode", [(16, "RGB"), (12, "RGB"), (4, "RGB"), (7, "L"), (1, "L"), (16, "LA")])
def test_jpeg_2000_of_a_depth_that_pillow_misreads_is_refused_by_name(tmp_path, suffix, head, bits, mode):
    """Pillow makes black of white where there are more bits than 8, and grey where there are fewer."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(16, 16, 3).astype(np.uint8)).convert(mode).save(path)
    read_image(path)
    data = bytearray(path.read_bytes())
    data[data.index(head) + (14 if suffix == "jp2" else 40)] = bits - 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"cannot be read: it has {bits} bits a channel, as JPEG 2000; convert it"):
        read_image(path)


@pytest.mark.parametrize("meaning", [6, 8])  # YCbCr, CIELAB
def test_colours_in_planes_that_are_not_red_green_and_blue_are_refused_by_name(tmp_path, meaning):
    (tmp_path / "a.tif").write_bytes(tiff(noise(4, 4, 3), 8, "<", {262: [meaning], 530: [1, 1]}, True, False))
    with pytest.raises(ValueError, match=f"photometric interpretation {meaning}, in planes"):
        read_image(tmp_path / "a.tif")


@pytest.mark.skipif(not FAULTS.is_dir(), reason="the files that once came out wrong are not beside the checkout")
def test_files_that_once_came_out_wrong():
    twelve, white0 = (read_image(FAULTS / name) for name in ("grey12.tif", "grey16_white0.tif"))
    assert np.array_equal(twelve, white0) and 30 < twelve.mean() < 60
    for name in ("display_p3.jpg", "p3_red.png"):
        image = Image.open(FAULTS / name)
        source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        expected = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert np.array_equal(read_image(FAULTS / name), np.asarray(expected))


# --- colour ---------------------------------------------------------------------------------------------------------------


def profile(gamma: float, primaries: dict[bytes, tuple[float, float, float]] | None = None) -> bytes:
    """A matrix profile (ICC.1:2001) of RGB with the tone curves x^gamma and the sRGB primaries, or others (XYZ for D50); or,
    without primaries, one of greys."""

    def fixed(*xs: float) -> bytes:
        return struct.pack(f">{len(xs)}i", *(round(x * 65536) for x in xs))

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249), b"cprt": b"text" + bytes(4) + b"none",
            b"desc": b"desc" + bytes(4) + struct.pack(">I", 1) + bytes(80)}  # fmt: skip
    if primaries:
        tags |= {name + b"XYZ": b"XYZ " + bytes(4) + fixed(*xyz) for name, xyz in primaries.items()}
        tags |= {name + b"TRC": curve for name in primaries}
    else:
        tags[b"kTRC"] = curve
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data.ljust(-(-len(data) // 4) * 4, b"\0")
    kind = b"mntrRGB XYZ " if primaries else b"mntrGRAY" + b"XYZ "
    head = struct.pack(">I4sI", 128 + len(table + body), bytes(4), 0x02400000) + kind + bytes(12) + b"acsp"
    return (head.ljust(68, b"\0") + fixed(0.9642, 1, 0.8249)).ljust(128, b"\0") + table + body


SRGB = {b"r": (0.4361, 0.2225, 0.0139), b"g": (0.3851, 0.7169, 0.0971), b"b": (0.1431, 0.0606, 0.7141)}


def test_colours_are_converted_to_srgb(tmp_path):
    """A profile that swaps red and green, and one of linear light, whose greys are lighter in sRGB."""
    pixels = noise(*SIZE, 3).astype(np.uint8)
    swapped = profile(2.2, {b"r": SRGB[b"g"], b"g": SRGB[b"r"], b"b": SRGB[b"b"]})
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=swapped)
    assert np.abs(read_image(tmp_path / "a.png").astype(int) - pixels[..., [1, 0, 2]]).max() < 12  # 2.2 is not quite sRGB
    x = pixels[..., 0]
    srgb = np.where(x / 255 <= 0.0031308, 12.92 * x / 255, 1.055 * (x / 255) ** (1 / 2.4) - 0.055) * 255  # IEC 61966-2-1
    for name, icc, image in [
        ("rgb.png", profile(1, SRGB), Image.fromarray(x).convert("RGB")),
        ("rgba.png", profile(1, SRGB), Image.fromarray(x).convert("RGBA")),
        ("grey.png", profile(1), Image.fromarray(x)),
        ("la.png", profile(1), Image.fromarray(x).convert("LA")),
        ("grey16.png", profile(1), Image.fromarray(x.astype(np.uint16) * 257)),
        ("palette.png", profile(1, SRGB), Image.fromarray(x).convert("P")),
    ]:
        image.save(tmp_path / name, icc_profile=icc)
        assert np.abs(read_image(tmp_path / name)[..., 1] - srgb).max() < 1.5, name


@pytest.mark.parametrize("icc", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"damaged", profile(1)])
def test_a_profile_that_says_nothing_changes_nothing(tmp_path, icc):
    """sRGB's own, one that cannot be read, one of another kind of image."""
    pixels = noise(*SIZE, 3).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=icc)
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels)


def test_transparency_is_white_whatever_the_profile(tmp_path):
    pixels = noise(*SIZE, 4).astype(np.uint8)
    pixels[0, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile(1, SRGB))
    assert (read_image(tmp_path / "a.png")[0] == 255).all()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_of_an_avif_is_applied_once(tmp_path, orientation):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24, 0] = upright[:16, 24:, 1] = upright[16:, :24, 2] = 255  # red, green, blue and black quarters
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that EXIF's orientation undoes
    stored = Image.fromarray(upright)
    stored = stored.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.avif", exif=exif, quality=95)
    image = read_image(tmp_path / "a.avif")
    assert image.shape == upright.shape
    corners = np.index_exp[4:12, 4:20], np.index_exp[4:12, 28:44], np.index_exp[20:28, 4:20], np.index_exp[20:28, 28:44]
    for corner in corners:
        assert np.abs(image[corner].astype(int) - upright[corner]).max() < 40


# --- frames ---------------------------------------------------------------------------------------------------------------


def pages(path, n: int = 3) -> list[np.ndarray]:
    frames = [np.full((*SIZE, 3), (80 * i, 255 - 80 * i, 40 * i), np.uint8) for i in range(n)]
    first, *others = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=others)
    return frames


@pytest.mark.parametrize("which", [0, 1])
def test_a_page_has_its_own_profile_or_none(tmp_path, which):
    """Not that of another page, which is looked at before or after it."""
    pixels = noise(*SIZE, 3).astype(np.uint8)
    page, path = Image.fromarray(pixels), tmp_path / "a.tif"
    others = [page.copy(), page.copy()]
    others[which].encoderinfo = {"icc_profile": profile(1, SRGB)}
    with TiffImagePlugin.AppendingTiffWriter(path, True) as file:
        for other in others:
            other.save(file, format="TIFF", **getattr(other, "encoderinfo", {}))
            file.newFrame()
    assert np.array_equal(read_image(path, frame=1 - which), pixels)
    assert read_image(path, frame=which).mean() > pixels.mean() + 30


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_a_frame_is_chosen_and_several_are_reported_once(tmp_path, capsys, suffix):
    path = tmp_path / f"a.{suffix}"
    frames = pages(path)
    assert np.abs(read_image(path).astype(int) - frames[0]).max() < 20
    message = f"number 0 alone is read (compress, tokenize and features take --frame N, from 0): {path} (3)."
    assert message in capsys.readouterr().err
    list(decoded([[str(path)]]))
    assert capsys.readouterr().err == ""
    for i, frame in enumerate(frames):
        assert np.abs(read_image(path, frame=i).astype(int) - frame).max() < 20
    with pytest.raises(ValueError, match=f"--frame is 3, but .*a.{suffix} has 3 frames or pages, counted from 0"):
        read_image(path, frame=3)


def test_all_files_of_several_frames_are_named_in_one_line(tmp_path, capsys):
    for i in range(13):
        pages(tmp_path / f"{i:02}.gif", 2)
    pages(tmp_path / "single.png", 1)
    list(decoded([[str(path)] for path in sorted(tmp_path.iterdir())]))
    (line,) = capsys.readouterr().err.splitlines()
    assert "00.gif (2), " in line and "09.gif (2) and 3 more" in line and "single" not in line


# --- folders --------------------------------------------------------------------------------------------------------------


def touch(path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 3)).save(path, format="PNG")
    return str(path)


def test_all_that_pillow_reads_counts_as_an_image():
    assert {".jfif", ".pgm", ".jp2", ".png", ".tga", ".qoi"} <= readable_suffixes()
    assert not {".pdf", ".eps", ".h5", ".mpg", ".json", ".pth", ".npy"} & readable_suffixes()


def test_a_missing_plugin_is_named(tmp_path, monkeypatch, capsys):
    without = readable_suffixes() - {".jxl", ".heic"}
    monkeypatch.setattr(decoding, "readable_suffixes", lambda: without)
    monkeypatch.setattr(image_files, "readable_suffixes", lambda: without)
    for name in ("a.heic", ".a.heic"):
        (tmp_path / name).write_bytes(b"something")
    image = touch(tmp_path / "b.png")
    assert image_paths(tmp_path) == [image]
    assert capsys.readouterr().err == f"Left out, for they need pip install pillow-heif: {tmp_path / 'a.heic'}.\n"
    with pytest.raises(ValueError, match="a.heic cannot be read as an image .*; pip install pillow-heif"):
        read_image(tmp_path / "a.heic")


def test_jpeg_xl_counts_where_its_plugin_is(tmp_path):
    pytest.importorskip("pillow_jxl")
    pixels = noise(*SIZE, 3).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jxl", lossless=True)
    assert image_paths(tmp_path) == [str(tmp_path / "a.jxl")] and np.array_equal(read_image(tmp_path / "a.jxl"), pixels)


def test_folders_are_read_to_their_depth_but_not_hidden_ones(tmp_path, capsys):
    expected = sorted(touch(tmp_path / name) for name in ("b.png", "x/a.PNG", "x/y/z/c.pgm", "train.old/d.png"))
    for name in (".cache/a.png", "x/.hidden/y/b.png", "x/.c.png"):
        touch(tmp_path / name)
    (tmp_path / "x" / "notes.txt").touch()
    assert image_paths(tmp_path) == expected and not_read(tmp_path) == "1 other file"
    assert capsys.readouterr().err == ""
    for split in ("train", "valid"):
        assert image_paths(split, tmp_path) == (expected[:1] if split == "valid" else expected[1:])
    assert capsys.readouterr().err == f"{tmp_path} has no folders train and valid; of its 4 images every 20th validates.\n"


def test_samples_in_the_default_folder_are_not_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        touch(tmp_path / "data" / "sample" / f"{i}.png")
    with pytest.raises(FileNotFoundError, match="get them with python -m homework.data download"):
        image_paths("train")
    assert len(image_paths("data")) == 2 and len(image_paths("train", "data/sample")) == 1


@pytest.mark.skipif(os.name != "posix", reason="links and FIFOs need rights, or do not exist")
def test_links_are_followed_once_and_what_is_no_file_is_left_out(tmp_path, capsys):
    inside = touch(tmp_path / "images" / "a.png")
    linked = touch(tmp_path / "elsewhere" / "b.png").replace("elsewhere", "images/link")
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "images")
    assert image_paths(tmp_path / "images") == [inside, linked] and capsys.readouterr().err == ""
    os.mkfifo(tmp_path / "images" / "fifo.jpg")
    touch(tmp_path / "images" / "folder.png" / "c.png")
    (tmp_path / "images" / "gone.gif").symlink_to("nowhere")
    (tmp_path / "images" / "device.bmp").symlink_to("/dev/zero")
    with pytest.raises(FileNotFoundError, match="fifo.jpg is neither a file nor a folder"):
        image_paths(tmp_path / "images" / "fifo.jpg")
    for _ in range(2):
        assert image_paths(tmp_path / "images") == [inside, linked]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Left out, for they are named like images but are not files: ")
    assert all(name in line for name in ("fifo.jpg", "folder.png", "gone.gif", "device.bmp")) and "a.png" not in line
