"""Images whose files say by other means than an ICC profile what their numbers mean."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from homework.datasets.colour_spaces import SRGB, Space, profile
from homework.datasets.image_files import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
P3 = (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
P3_TO_SRGB = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])  # of light, in D65


def light(numbers):
    """IEC 61966-2-1: from numbers in [0,1] to light, in [0,1]."""
    return np.where(numbers <= 0.04045, numbers / 12.92, ((numbers + 0.055) / 1.055) ** 2.4)


def numbers(light):
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def with_chunks(path, image: Image.Image, chunks: dict[bytes, bytes]) -> None:
    """Saves a PNG with these chunks after its head."""
    file = io.BytesIO()
    image.save(file, "PNG")
    data = file.getvalue()
    more = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks.items())
    path.write_bytes(data[:33] + more + data[33:])


def gama(gamma: float) -> dict[bytes, bytes]:
    return {b"gAMA": struct.pack(">I", round(1e5 * gamma))}


def chrm(chromaticities) -> dict[bytes, bytes]:
    return {b"cHRM": struct.pack(">8I", *(round(1e5 * x) for x in chromaticities))}


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16"])
@pytest.mark.parametrize("gamma", [1.0, 1 / 1.8, 0.3])
def test_the_gamma_of_a_png_counts(tmp_path, mode, gamma):
    grey = Image.fromarray(PIXELS[..., 0])
    image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    with_chunks(tmp_path / "a.png", image, gama(gamma))
    expected = numbers((PIXELS[..., :1] / 255.0) ** (1 / gamma))
    assert np.abs(read_image(tmp_path / "a.png") - expected).max() < 2.5


@pytest.mark.parametrize("chunks", [
    gama(0.45455), gama(0.45), chrm(SRGB), gama(0.45455) | chrm(SRGB), gama(0), gama(4e4), {b"cHRM": bytes(32)},
    {b"cHRM": b"\x7f" * 32}, {b"cHRM": bytes(16)}, {b"sRGB": b"\0"} | gama(1), {b"cICP": bytes([1, 13, 0, 1])} | gama(1),
    {b"cICP": bytes([2, 2, 0, 1])}, {b"cICP": bytes([9])},
])  # fmt: skip
def test_what_is_srgb_or_says_nothing_stays_as_it_is(tmp_path, chunks):
    with_chunks(tmp_path / "a.png", Image.fromarray(PIXELS), chunks)
    assert np.array_equal(read_image(tmp_path / "a.png"), PIXELS)


@pytest.mark.parametrize("chunks", [chrm(P3), gama(0.45455) | chrm(P3), {b"cICP": bytes([12, 13, 0, 1])}])
def test_the_primaries_of_a_png_count(tmp_path, chunks):
    with_chunks(tmp_path / "a.png", Image.fromarray(PIXELS), chunks)
    expected = numbers(light(PIXELS / 255.0) @ P3_TO_SRGB.T)
    assert np.abs(read_image(tmp_path / "a.png") - expected).max() < 4


@pytest.mark.parametrize("primaries, transfer, what", [(9, 16, "HDR"), (9, 18, "HDR"), (1, 17, "17 of"), (10, 13, "10")])
def test_code_points_of_which_no_picture_can_be_made_are_refused_by_name(tmp_path, primaries, transfer, what):
    with_chunks(tmp_path / "a.png", Image.fromarray(PIXELS), {b"cICP": bytes([primaries, transfer, 0, 1])})
    with pytest.raises(ValueError, match=rf"a.png cannot be read: it has .*{what}.*; convert it"):
        read_image(tmp_path / "a.png")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_the_code_points_of_an_avif_count(tmp_path):
    path = tmp_path / "a.avif"
    Image.new("RGB", (16, 16), (162, 20, 108)).save(path, quality=100, subsampling="4:4:4")
    before, data = read_image(path)[0, 0].astype(int), path.read_bytes()
    at = data.index(b"colrnclx") + 8
    path.write_bytes(data[:at] + struct.pack(">HH", 12, 13) + data[at + 4 :])
    assert np.abs(read_image(path)[0, 0] - numbers(light(before / 255.0) @ P3_TO_SRGB.T)).max() < 4
    path.write_bytes(data[:at] + struct.pack(">HH", 9, 16) + data[at + 4 :])
    with pytest.raises(ValueError, match="brightness beyond white"):
        read_image(path)


@given(st.tuples(*[st.floats(0, 2)] * 8), st.floats(0.01, 100))
def test_a_profile_of_any_numbers_is_made_or_left_out(chromaticities, exponent):
    found = profile(Space(chromaticities, exponent))
    assert found == b"" or struct.unpack(">I", found[:4])[0] == len(found)
