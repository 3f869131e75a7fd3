"""``python -m homework.evaluate``, and what it measures with: MS-SSIM, Bjontegaard rate, other codecs' files."""

import csv
import dataclasses
import io
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SIZE, TINY, K, build, files, run, sentence
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, features
from test_demo import Page

from homework.codec.compressor import Compressor
from homework.core import checkpoint, registry
from homework.datasets.image_files import read_image
from homework.datasets.images import to_uint8
from homework.datasets.sharding import shard
from homework.evaluate import list_pairs, parse_range, spread
from homework.evaluation import codecs, curves, metrics
from homework.evaluation.measure import bit_map, float_image, payload

HAS_AVIF = "avif" in features.modules and features.check("avif")


@pytest.fixture(scope="session")
def frame() -> np.ndarray:
    """(100,150,3) uint8"""
    return read_image(ROOT / "data" / "sample" / "temple.jpg")


# --- MS-SSIM ---------------------------------------------------------------------------------------------------------------


def noisy(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return (x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def test_ms_ssim_is_1_for_equal_images_symmetric_and_falls_with_noise(frame):
    x = torch.from_numpy(frame.copy())[None] / 255
    assert metrics.ms_ssim(x, x).item() == pytest.approx(1, abs=1e-12)
    values = [metrics.ms_ssim(x, noisy(x, sigma)).item() for sigma in (0, 0.02, 0.05, 0.1, 0.3)]
    assert all(a > b + 0.005 for a, b in zip(values, values[1:], strict=False)) and values[-1] > 0
    y = noisy(x, 0.1)
    assert metrics.ms_ssim(x, y).item() == pytest.approx(metrics.ms_ssim(y, x).item(), abs=1e-12)
    assert metrics.ms_ssim(x, 1 - x).item() < 0.2
    both = metrics.ms_ssim(torch.cat([x, x]), torch.cat([x, y]))
    assert both.dtype == torch.float64 and both.tolist() == pytest.approx([1, metrics.ms_ssim(x, y).item()], abs=1e-12)


@pytest.mark.parametrize("side, scales", [(161, 5), (160, 4), (100, 4), (81, 4), (80, 3), (41, 3), (21, 2), (11, 1), (3, 1)])
def test_as_many_scales_as_fit(side, scales):
    assert metrics.n_scales(side, side + 40) == metrics.n_scales(side + 40, side) == scales


@pytest.mark.parametrize("H, W", [(170, 163), (100, 150), (45, 60), (13, 12), (7, 30), (1, 1)])
def test_ms_ssim_of_flat_images_is_their_luminance_at_the_coarsest_scale(H, W):
    a, b, scales = 0.3, 0.6, metrics.n_scales(H, W)
    weights = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales]
    luminance = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    found = metrics.ms_ssim(torch.full((1, H, W, 3), a), torch.full((1, H, W, 3), b)).item()
    assert found == pytest.approx(luminance ** (weights[-1] / sum(weights)), rel=1e-6)


@pytest.mark.parametrize("H, W", [(161, 175), (45, 61)])
def test_ms_ssim_is_that_of_the_paper_written_out(H, W):
    draw = np.random.default_rng(0)
    x = draw.random((H, W)).cumsum(0).cumsum(1) % 1
    y = np.clip(x + 0.1 * draw.standard_normal((H, W)), 0, 1)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][: metrics.n_scales(H, W)])
    found = metrics.ms_ssim(*(torch.from_numpy(z)[None, :, :, None] for z in (x, y))).item()
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window, product = np.outer(g, g) / g.sum() ** 2, 1.0
    for i, weight in enumerate(weights / weights.sum()):
        px, py = (np.lib.stride_tricks.sliding_window_view(z, (11, 11)) for z in (x, y))  # (H-10,W-10,11,11)
        mx, my = ((p * window).sum((2, 3)) for p in (px, py))
        dx, dy = px - mx[..., None, None], py - my[..., None, None]
        vx, vy, vxy = ((a * b * window).sum((2, 3)) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
        term = (2 * vxy + 0.03**2) / (vx + vy + 0.03**2)
        if i == len(weights) - 1:
            term = term * (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
        product *= term.mean() ** weight
        x, y = (np.pad(z, [(0, n % 2) for n in z.shape], mode="edge") for z in (x, y))
        x, y = ((z[::2, ::2] + z[1::2, ::2] + z[::2, 1::2] + z[1::2, 1::2]) / 4 for z in (x, y))
    assert found == pytest.approx(product, rel=1e-9)


# --- Bjontegaard rate ------------------------------------------------------------------------------------------------------

REFERENCE = [(300, 24.0), (450, 26.1), (700, 28.0), (1200, 30.5), (2100, 33.0)]


def test_half_the_rate_is_minus_50_percent():
    half = [(rate / 2, quality) for rate, quality in REFERENCE]
    assert curves.bd_rate(half, REFERENCE) == pytest.approx(-0.5)
    assert curves.bd_rate(REFERENCE, half) == pytest.approx(1.0)
    assert curves.bd_rate(REFERENCE, REFERENCE) == pytest.approx(0, abs=1e-12)
    assert curves.bd_rate(half[::-1], REFERENCE[::-1]) == pytest.approx(-0.5)


def test_bd_rate_is_a_mean_over_the_common_qualities():
    """Where the logarithm of the rate is a straight line of quality, so is the interpolation, and the mean is known."""
    one = [(math.exp(0.2 * q), q) for q in (20, 23, 25, 31)]
    other = [(math.exp(0.1 * q + 1), q) for q in (22, 27, 28, 40)]
    middle = (22 + 31) / 2
    assert curves.bd_rate(one, other) == pytest.approx(math.exp(0.2 * middle - 0.1 * middle - 1) - 1)
    assert (1 + curves.bd_rate(one, other)) * (1 + curves.bd_rate(other, one)) == pytest.approx(1)


def test_what_is_not_defined_is_none():
    assert curves.bd_rate(REFERENCE, [(300, 24.0)]) is None and curves.bd_rate([], REFERENCE) is None
    assert curves.bd_rate(REFERENCE, [(1, 10.0), (2, 20.0)]) is None
    assert curves.rate_at(REFERENCE, 23.9) is None and curves.rate_at(REFERENCE, 33.1) is None
    assert curves.rate_at([], 20) is None and curves.rate_at([(7, 20.0)], 21) is None
    assert curves.rate_at([(7, 20.0)], 20) == 7


@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0.001, 2)), min_size=1, max_size=8), st.randoms())
def test_interpolation_meets_the_points_and_is_monotone_between_them(steps, random):
    quality, log_rate = np.cumsum([(20, 5), *steps], axis=0).T
    points = list(zip(np.exp(log_rate), quality, strict=True))
    random.shuffle(points)
    for rate, q in points:
        assert curves.rate_at(points, q) == pytest.approx(rate)
    between = curves.log_rate(points)(np.linspace(quality[0], quality[-1], 300))
    assert (np.diff(between) > -1e-9).all()


def test_of_two_points_of_one_quality_the_cheaper_counts():
    assert curves.rate_at([*REFERENCE, (900, 28.0)], 28.0) == pytest.approx(700)
    assert curves.bd_rate([*REFERENCE, (900, 28.0)], REFERENCE) == pytest.approx(0, abs=1e-12)


# --- other codecs' files ---------------------------------------------------------------------------------------------------

QUICK = {"WebP": {"method": 0}, "AVIF": {"speed": 10, "max_threads": 1}, "JPEG XL": {"effort": 1, "num_threads": 1}}


def quick(name: str) -> codecs.Codec:
    codec = next(c for c in codecs.CODECS if c.name == name)
    if codec not in codecs.available()[0]:
        pytest.skip(f"there is no {name} here")
    return dataclasses.replace(codec, options=codec.options | QUICK.get(name, {}))


@pytest.mark.parametrize("name", [codec.name for codec in codecs.CODECS])
def test_what_is_no_picture_is_no_payload(frame, name):
    """A comment makes a file larger, but not its payload; the picture comes back as well as the quality says."""
    codec, sizes, errors, exif = quick(name), [], [], Image.Exif()
    exif[0x010E] = "a long description" * 9
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    more = {"icc_profile": profile} if name == "AVIF" else {"exif": exif.tobytes()}  # AVIF keeps Exif beside the picture
    for quality in 5, 30, 80:
        data = codec.encode(frame, quality)
        commented = dataclasses.replace(codec, options=codec.options | more).encode(frame, quality)
        assert len(commented) > len(data) + 150
        assert 0 < codec.payload(data) == codec.payload(commented) <= len(data)
        same, again, *seconds = codec.timed(frame, quality)
        assert same == data and again.shape == frame.shape and again.dtype == np.uint8 and min(seconds) >= 0
        sizes.append(codec.payload(data))
        errors.append(np.square(again / 255 - frame / 255).mean())
    assert sizes == sorted(sizes) and errors == sorted(errors)[::-1] and errors[-1] < 0.002


def test_payload_of_jpeg_is_what_is_between_the_scan_header_and_the_end(frame):
    codec = quick("JPEG")
    data = codec.encode(frame, 30)
    scan = data.rindex(b"\xff\xda")
    assert data[-2:] == b"\xff\xd9" and codec.payload(data) == len(data) - 2 - (scan + 2 + data[scan + 3])
    one, several = io.BytesIO(), io.BytesIO()
    Image.fromarray(frame).save(one, "JPEG", quality=30, restart_marker_rows=1)
    Image.fromarray(frame).save(several, "JPEG", quality=30, progressive=True)
    assert codec.payload(data) < codec.payload(one.getvalue()) < len(one.getvalue()) - 500
    assert abs(codec.payload(several.getvalue()) - codec.payload(data)) < 0.2 * len(data)


def test_payload_of_webp_and_avif_is_one_box(frame):
    data = quick("WebP").encode(frame, 30)
    assert data[12:16] == b"VP8 " and codecs.webp_payload(data) + len(data) % 2 in (len(data) - 20, len(data) - 21)
    assert [kind for kind, _ in codecs.boxes(b"\0\0\0\1abcd" + (20).to_bytes(8) + b"1234\0\0\0\0last")] == [b"abcd", b"last"]
    if HAS_AVIF:
        data = quick("AVIF").encode(frame, 30)
        assert codecs.avif_payload(data) == len(data) - data.index(b"mdat") - 4


def test_payload_of_jpeg_xl_is_its_codestream_in_a_container_too(frame):
    codec = quick("JPEG XL")
    bare = codec.encode(frame, 30)
    boxed = dataclasses.replace(codec, options=codec.options | {"use_container": True}).encode(frame, 30)
    assert bare[:2] == b"\xff\x0a" and codec.payload(bare) == len(bare) == codec.payload(boxed) < len(boxed)


@pytest.mark.parametrize("name", ["JPEG", "WebP"])
def test_nearest_in_bytes(frame, name):
    codec = quick(name)
    sizes = {q: len(codec.encode(frame, q)) for q in range(1, 101)}
    for target in 600, 1000, 3000:
        quality, data = codec.nearest(frame, target)
        assert data == codec.encode(frame, quality)
        assert abs(len(data) - target) <= min(abs(size - target) for size in sizes.values()) + 0.03 * target
    assert codec.nearest(frame, 1)[0] <= 1 and codec.nearest(frame, 10**6)[0] == 100


def test_codecs_that_are_missing_are_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    monkeypatch.delitem(features.modules, "avif", raising=False)
    found, left_out = codecs.available()
    assert [codec.name for codec in found] == ["JPEG", "WebP"]
    assert len(left_out) == 2 and "11.3" in left_out[0] and "pillow-jxl-plugin" in left_out[1]


def test_the_cheap_codecs_qualities_span_ours(real_frames):
    images = [read_image(path) for path in real_frames[:8]]
    for codec in codecs.CODECS[:2]:
        mse = []
        for quality in codec.qualities[0], codec.qualities[-1]:
            again = [codec.decode(codec.encode(image, quality)) for image in images]
            mse.append(np.square(np.stack(again) / 255 - np.stack(images) / 255).mean())
        assert metrics.psnr(mse[0]) < 26 and metrics.psnr(mse[1]) > 29


# --- the command -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch, frame):
    """The current folder, with tiny models and five pictures of three sizes, one grey; and codecs that are quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(codecs, "CODECS", tuple(
        dataclasses.replace(codec, options=codec.options | QUICK.get(codec.name, {}), qualities=(10, 40, 80))
        for codec in codecs.CODECS if codec.name != "AVIF" or HAS_AVIF
    ))  # fmt: skip
    for path, name in (("a", "PatchAutoEncoder"), ("t", "BSQPatchAutoEncoder"), ("p", "AutoregressiveModel")):
        checkpoint.save(build(name), f"{path}.pth")
    Path("pictures").mkdir()
    for i, (name, (H, W)) in enumerate({"0": SIZE, "1": SIZE, "2": (33, 47), "<h2>a&b'": (20, 28), "grey": SIZE}.items()):
        image = Image.fromarray(frame[10 * i : 10 * i + H, 10 * i : 10 * i + W])
        (image.convert("L") if name == "grey" else image).save(Path("pictures", f"{name}.png"))
    return tmp_path


QUICKLY = """
import dataclasses
from homework.core import cli
from homework.evaluate import evaluate
from homework.evaluation import codecs

codecs.CODECS = (dataclasses.replace(codecs.CODECS[0], qualities=(10, 40, 80)),)
cli.main("evaluate", evaluate)
"""


def read_csv(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_report_is_complete_and_true_to_the_models(command, folder):
    options = ["--out", "2026", "--n_pictures", 2, "--batch_size", 2, "--effort", 0]
    refused = sentence(command("evaluate", "t.pth", "p.pth", "pictures", *options, "--psnr", 0))
    assert "--psnr is 0, but must be" in refused
    done = command("evaluate", "t.pth", "p.pth", "pictures", *options, "--psnr", 200, "--between", "20,30")
    assert done.returncode == 0, done.stderr
    assert "Files at 200.00 dB: none, for ours reach" in done.stdout and "no other codec reaches two of these" in done.stdout
    report, names = folder / "2026", [codec.name for codec in codecs.available()[0]]
    page = Page(report / "index.html")
    assert {*page.links, "index.html", "rates.csv", "images.csv", "bjontegaard.csv", "measured.jsonl"} == files(report)
    assert len(page.links) == len(set(page.links)) == 1 + 2 * (3 + len(names))
    html = (report / "index.html").read_text("utf-8")
    assert str(folder) not in html and str(ROOT) not in html
    assert not re.search(r"(?i)https?:|//|url\(|@import|<script", html) and "<h2>a&b'" not in html
    with Image.open(report / "rates.png") as plot:
        assert min(plot.size) > 500 and len(plot.convert("RGB").getcolors(10**6)) > 20

    compressor = Compressor(checkpoint.load("t.pth"), checkpoint.load("p.pth"))
    images = [read_image(path) for path in sorted(Path("pictures").iterdir(), key=str)]
    packed = [compressor.compress(float_image(image)) for image in images]
    mse = [
        np.square(to_uint8(compressor.decompress(data)).numpy() / 255 - image / 255).mean()
        for data, image in zip(packed, images, strict=True)
    ]
    points = read_csv(report / "rates.csv")
    assert [p["codec"] for p in points] == ["ours", *(name for name in names for _ in range(3))]
    assert float(points[0]["bytes"]) == np.mean([len(data) for data in packed])
    assert float(points[0]["psnr_of_mean_mse"]) == pytest.approx(metrics.psnr(np.mean(mse)), rel=1e-4)
    assert float(points[0]["mean_of_psnrs"]) == pytest.approx(np.mean([metrics.psnr(m) for m in mse]), rel=1e-4)
    pixels = sum(image.shape[0] * image.shape[1] for image in images)
    assert float(points[0]["bits_per_pixel"]) == pytest.approx(8 * sum(map(len, packed)) / pixels)
    each = read_csv(report / "images.csv")
    assert len(each) == len(points) * len(images)
    assert [float(row["bytes"]) for row in each[: len(packed)]] == list(map(len, packed))
    assert all(0 < float(row["bytes"]) - float(row["payload"]) <= 24 for row in each[: len(packed)])
    jpeg = next(row for row in each if (row["codec"], row["image"], row["setting"]) == ("JPEG", "2.png", "40"))
    assert float(jpeg["bytes"]) == len(codecs.CODECS[0].encode(images[2], 40))
    assert float(each[2]["bits_per_pixel"]) == pytest.approx(8 * len(packed[2]) / (images[2].size / 3))
    assert float(each[2]["psnr"]) == pytest.approx(metrics.psnr(mse[2]), rel=1e-4)
    assert [row["codec"] for row in read_csv(report / "bjontegaard.csv")] == ["ours", *names]
    assert f"{float(points[0]['bytes']):,.0f} bytes" in page.text and f"{float(points[0]['ms_ssim']):.4f}" in page.text
    assert f"{float(points[0]['bytes']):,.1f} bytes an image" in done.stdout and "is better than ours" in done.stdout

    for i, k in enumerate((0, 2)):  # the two that are shown
        shown = np.asarray(Image.open(report / f"ours_{i}.png"))
        again = to_uint8(compressor.decompress(packed[k])).numpy()
        assert (np.asarray(Image.open(report / f"original_{i}.png")) == images[k]).all()
        assert abs(shown.astype(int) - again).max() <= 1
        assert Image.open(report / f"bits_{i}.png").size == images[k].shape[1::-1]


def test_all_codecs_get_the_same_scaled_pictures(command, folder):
    done = command("evaluate", "t.pth", "p.pth", "pictures", "--limit", 2, "--n_pictures", 2, "--image_size", "20x30")
    assert done.returncode == 0, done.stderr
    shown = {path.name: Image.open(path).size for path in (folder / "report").glob("*_[01].png") if "bits" not in path.name}
    assert len(shown) > 4 and set(shown.values()) == {(30, 20)}
    rates = [float(row["bytes"]) * 8 / float(row["bits_per_pixel"]) for row in read_csv(folder / "report" / "rates.csv")]
    assert rates == pytest.approx([600] * len(rates))


def test_several_pairs_make_a_curve(command, folder):
    for i in 1, 2:
        checkpoint.save(build("BSQPatchAutoEncoder", seed=i), f"t{i}.pth")
    done = command("evaluate", "t1.pth,t2.pth", "p.pth", "pictures", "--limit", 2, "--n_pictures", 1)
    assert done.returncode == 0, done.stderr
    points = read_csv(folder / "report" / "rates.csv")
    assert [p["setting"] for p in points[:2]] == ["t1 + p", "t2 + p"] and {p["images"] for p in points} == {"2"}
    text = Page(folder / "report" / "index.html").text
    assert "At our quality: t1 + p" in text and "At our quality: t2 + p" in text and "ours against it" in text
    assert "t1 + p: " in done.stdout and "t2 + p: " in done.stdout


def test_several_qualities_make_a_curve(command, folder):
    options = ["--limit", 2, "--n_pictures", 1, "--effort", 1, "--quality", "20,90"]
    done = command("evaluate", "t.pth", "p.pth", "pictures", *options)
    assert done.returncode == 0, done.stderr
    points = read_csv(folder / "report" / "rates.csv")
    assert [p["setting"] for p in points[:2]] == ["quality 20", "quality 90"]
    assert float(points[0]["bytes"]) <= float(points[1]["bytes"])
    text = sentence(command("evaluate", "t.pth", "p.pth", "pictures", "--quality", "20,fine"))
    assert "quality is '20,fine', but must be numbers from 1 to 100" in text


@pytest.mark.parametrize("cut", [0, 1, 300, 2000, 4000])
def test_an_interrupted_evaluation_goes_on(command, folder, monkeypatch, cut):
    options = ["--limit", 3, "--n_pictures", 1, "--effort", 0]
    assert command("evaluate", "t.pth", "p.pth", "pictures", *options).returncode == 0
    measured, expected = folder / "report" / "measured.jsonl", read_csv(folder / "report" / "images.csv")
    whole = measured.read_bytes()
    measured.write_bytes(whole[: len(whole) - cut])
    calls, timed = [], codecs.Codec.timed
    monkeypatch.setattr(codecs.Codec, "timed", lambda codec, *args: calls.append(codec.name) or timed(codec, *args))
    assert command("evaluate", "t.pth", "p.pth", "pictures", *options, "--resume").returncode == 0
    found = read_csv(folder / "report" / "images.csv")
    missing = whole.count(b"\n") - whole[: len(whole) - cut].count(b"\n")
    assert len(calls) == missing and len(measured.read_bytes().splitlines()) == len(whole.splitlines())
    same = [{k: v for k, v in row.items() if not k.endswith("_s")} for row in expected]
    assert [{k: v for k, v in row.items() if not k.endswith("_s")} for row in found] == same
    assert cut or found == expected  # times too, for nothing was measured again

    other = command("evaluate", "t.pth", "p.pth", "pictures", "--limit", 3, "--n_pictures", 1, "--effort", 1, "--resume")
    assert other.returncode == 0 and len(measured.read_bytes().splitlines()) == len(whole.splitlines()) + 3


@pytest.mark.parametrize("line", ["{}", "[]", '{"of": [1], "row": 3}', '{"of": "a", "row": [1]}', "x", "", "[" * 10**5,
                                  '{"of": "a", "row": [1, 1, 1, NaN, 1, 1, 1]}'])  # fmt: skip
def test_measurements_that_are_damaged_are_named(command, folder, line):
    options = ["t.pth", "p.pth", "pictures", "--limit", 1, "--n_pictures", 1, "--effort", 0]
    Path("report").mkdir()
    Path("report/measured.jsonl").write_text(f"{line}\n")
    assert "measured.jsonl is damaged; leave --resume out" in sentence(command("evaluate", *options, "--resume"))
    Path("pictures/0.png").write_bytes(b"no picture")
    sentence(command("evaluate", *options))
    assert Path("report/measured.jsonl").read_text() == f"{line}\n"  # until there is something else to keep


def test_two_processes_measure_what_one_does(command, folder):
    options = ["t.pth", "p.pth", "pictures", "--limit", 3, "--n_pictures", 1, "--effort", 0, "--device", "cpu"]
    (folder / "quick.py").write_text(QUICKLY)
    done = run("quick.py", *options, "--out", "two", cwd=folder, processes=2)
    assert done.returncode == 0 and done.stdout.count("open it in a browser") == 1, done.stderr
    assert command("evaluate", *options, "--out", "one").returncode == 0
    one, two = ([{k: v for k, v in row.items() if not k.endswith("_s")} for row in read_csv(folder / out / "images.csv")]
                for out in ("one", "two"))  # fmt: skip
    assert [row for row in one if row["codec"] in ("ours", "JPEG")] == two
    assert files(folder / "two") >= {"measured.jsonl", "index.html"} and "measured_1.jsonl" not in files(folder / "two")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_evaluation_goes_on_with_another_number_of_processes(folder, processes):
    """What three processes had measured, each in its own file, the second one's cut short, is not measured again."""
    options = ["t.pth", "p.pth", "pictures", "--limit", 3, "--n_pictures", 1, "--effort", 0, "--device", "cpu"]
    (folder / "quick.py").write_text(QUICKLY)
    assert run("quick.py", *options, cwd=folder).returncode == 0
    expected, path = read_csv(folder / "report/images.csv"), folder / "report/measured.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    for rank, part in enumerate((lines[::3], [*lines[1::3], lines[0][:-9]], lines[2::3])):
        (folder / f"report/measured_{rank}.jsonl".replace("_0", "")).write_bytes(b"".join(part))
    done = run("quick.py", *options, "--resume", cwd=folder, processes=processes)
    assert done.returncode == 0, done.stderr
    assert read_csv(folder / "report/images.csv") == expected  # and their times
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)
    assert [name for name in files(folder / "report") if name.startswith("measured")] == ["measured.jsonl"]


def test_images_of_shards_are_those_of_the_folder_and_no_others_are_read(command, folder):
    """Of one image each, of which one that is not among the limit's is spoiled."""
    shard("pictures", "shards", size="1KB")
    urls, options = sorted(Path("shards").glob("*.tar")), ["--limit", 2, "--n_pictures", 1, "--effort", 0]
    for source in "pictures", "shards":
        if source == "shards":
            for url in set(urls) - {urls[0], urls[2]}:  # numbers 0 and 2 of five
                url.write_bytes(b"")
        assert command("evaluate", "t.pth", "p.pth", source, *options, "--out", f"of_{source}").returncode == 0
    one, other = (read_csv(Path(f"of_{source}/images.csv")) for source in ("pictures", "shards"))
    times = "encode_s", "decode_s"
    assert len(urls) == 5 and [row | dict.fromkeys(times) for row in one] == [row | dict.fromkeys(times) for row in other]
    assert "not a tar file" in sentence(command("evaluate", "t.pth", "p.pth", "shards", "--n_pictures", 1))


def test_under_the_uniform_prior_each_token_costs_the_bits_of_a_code(command, folder):
    assert command("evaluate", "t.pth", "uniform", "pictures", "--limit", 1, "--n_pictures", 1).returncode == 0
    (ours,) = (row for row in read_csv(folder / "report" / "images.csv") if row["codec"] == "ours")
    assert 0 <= float(ours["payload"]) - 4 * 6 * math.log2(K) / 8 <= 4


def test_the_shipped_models_have_names(command, folder):
    done = command("evaluate", "BSQPatchAutoEncoder", "AutoregressiveModel", "pictures", "--limit", 1, "--n_pictures", 1)
    assert done.returncode == 0, done.stderr
    assert "two models, 0.0 MB" not in Page(folder / "report" / "index.html").text


@pytest.mark.parametrize("package", ["jinja2", "matplotlib", "scipy"])
def test_a_missing_package_is_named_before_the_work(command, folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = sentence(command("evaluate", "t.pth", "p.pth", "pictures"))
    assert f"the package {package}; pip install" in message and "homework[report]" in message
    assert not files(folder / "report")


def test_codecs_that_are_missing_are_reported_on_the_page(command, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    assert command("evaluate", "t.pth", "p.pth", "pictures", "--limit", 1).returncode == 0
    assert "JPEG XL is left out" in Page(folder / "report" / "index.html").text
    assert "JPEG XL" not in {row["codec"] for row in read_csv(folder / "report" / "rates.csv")}


@pytest.mark.parametrize("tokenizer", [n for n in ("BSQPatchAutoEncoder", "VQPatchAutoEncoder") if n in registry.MODELS])
@pytest.mark.parametrize("prior", [n for n in ("AutoregressiveModel", "GatedPixelCNN") if n in TINY])
def test_the_bit_map_adds_up_to_the_payload(tokenizer, prior, frame):
    """For any tokenizer and prior, and images larger than the prior's grids."""
    compressor = Compressor(build(tokenizer), build(prior))
    for H, W in SIZE, (47, 62):
        bits = bit_map(compressor, compressor.to_tokens(float_image(frame[:H, :W])[None])[0])
        assert bits.shape == (-(-H // 5), -(-W // 5)) and (bits >= 0).all()
        n = payload(compressor.compress(float_image(frame[:H, :W])))
        assert abs(bits.sum().item() / 8 - n) < 5  # full bytes, and the range coder's own loss


@pytest.mark.parametrize(
    "wrong, message",
    [
        (("t.pth", "p.pth", "nowhere"), "nowhere"),
        (("t.pth", "p.pth", "empty"), "empty"),
        (("t.pth", "p.pth", "bad"), "cannot be read as an image"),
        (("t.pth", "p.pth", "pictures", "--limit", 0), "--limit is 0"),
        (("t.pth", "p.pth", "pictures", "--limit", "x"), "--limit is 'x'"),
        (("t.pth", "p.pth", "pictures", "--n_pictures", 0), "--n_pictures is 0"),
        (("t.pth", "p.pth", "pictures", "--batch_size", 1.5), "--batch_size is 1.5"),
        (("t.pth,t.pth", "p.pth,p.pth,p.pth", "pictures"), "2 tokenizers but 3 priors"),
        (("none.pth", "p.pth", "pictures"), "none.pth"),
        (("a.pth", "p.pth", "pictures"), "a.pth holds a PatchAutoEncoder"),
        (("t.pth", "a.pth", "pictures"), "a.pth holds a PatchAutoEncoder"),
        (("t.pth", "p.pth", "pictures", "--out", "t.pth"), "t.pth"),
    ],
)
def test_mistakes_are_reported_in_one_sentence_and_nothing_is_written(command, folder, wrong, message):
    Path("empty").mkdir()
    Path("bad").mkdir()
    Path("bad", "bad.png").write_bytes(b"no picture")
    assert message in sentence(command("evaluate", *wrong))
    assert not files(folder / "report")


def test_lists_of_checkpoints():
    assert list_pairs("a", "b") == [("a", "b")]
    assert list_pairs("a,b", "c") == [("a", "c"), ("b", "c")] and list_pairs("a", "b,c") == [("a", "b"), ("a", "c")]
    assert list_pairs("a,b", "c,d") == [("a", "c"), ("b", "d")]


def test_which_file_a_name_means_is_said_once(command, folder):
    Path("homework").mkdir()
    for name in "tp":
        Path(f"{name}.pth").rename(f"homework/{name}.pth")
    done = command("evaluate", "t", "p", "pictures/0.png", "--n_pictures", 1)
    said = [line for line in done.stderr.splitlines() if ": using " in line]
    assert done.returncode == 0 and said == [f"{name}: using homework/{name}.pth" for name in "tp"]


@given(st.integers(1, 50), st.one_of(st.none(), st.integers(1, 60)))
def test_spread(n, k):
    some = spread(list(range(n)), k)
    assert len(some) == min(n, k or n) and some == sorted(set(some)) and some[0] == 0
    assert not some[1:] or max(np.diff(some)) - min(np.diff(some)) <= 1


# --- sentences -------------------------------------------------------------------------------------------------------------


def point(codec: str, n_bytes: float, mse: float, payload: float | None = None) -> curves.Point:
    return curves.Point(codec, "", np.array([[600, n_bytes, payload or n_bytes, mse, 0.9, 0, 0]]))


def test_the_sentence_says_who_wins_and_by_how_much():
    flat = {name: [point(name, n, mse) for mse in (0.1, 0.001)] for name, n in (("A", 100), ("B", 400), ("C", 250))}
    ours = point("ours", 200, 0.01, 50)
    all_curves = {"ours": [ours], **flat, "D": [point("D", 10, 0.1), point("D", 20, 0.05)]}
    assert curves.comparison(all_curves, ours, "bytes") == (
        "At our PSNR, ours is smaller than B (by 50 %) and C (by 20 %), but larger than A (by 100 %). "
        "Every measured setting of D is worse than ours."
    )
    assert "setting of A, B, C and D is better" in curves.comparison(all_curves, point("ours", 200, 0.5), "bytes")
    found = curves.rivals_at(all_curves, ours, "payload")
    assert found.pop("D") is None
    wanted = {"A": (100, 0.5), "B": (400, 0.875), "C": (250, 0.8)}
    assert {name: pytest.approx(pair) for name, pair in found.items()} == wanted
    first, second, *_ = curves.verdict(all_curves, 4000)[0].splitlines()
    assert "20.0 times fewer" in first and "than B (by 50 %)" in second


def test_what_our_points_say_together():
    ours = [point("ours", 100, 0.01, 50), point("ours", 200, 0.001, 150)]
    all_curves = {"ours": ours, "A": [point("A", 4 * p["bytes"], p["mse"], 2 * p["payload"]) for p in ours],
                  "B": [point("B", 100, 0.1)]}  # fmt: skip
    assert curves.between_points(all_curves, 20, curves.ANY) == [
        "Files at 20.00 dB: ours take 100.0 bytes, 0.250 of A's 400.0.",
        "Files, Bjontegaard rate of ours against A −75.0 % (20.00 to 30.00 dB).",
        "Payloads at 20.00 dB: ours take 50.0 bytes, 0.500 of A's 100.0.",
        "Payloads, Bjontegaard rate of ours against A −50.0 % (20.00 to 30.00 dB).",
    ]
    (files, *_), (none, *_) = (curves.between_points(all_curves, dB, (22, 99)) for dB in (25, 31))
    assert files == "Files at 25.00 dB: ours take 141.4 bytes, 0.250 of A's 565.7."
    assert none == "Files at 31.00 dB: none, for ours reach 20.00 to 30.00 dB."
    assert "no other codec" in curves.between_points(all_curves, None, (40, 50))[0]
    assert "(22.00 to 30.00 dB)" in curves.between_points(all_curves, None, (22, 99))[0]
    assert curves.between_points({"ours": ours[:1], "B": [point("B", 100, 0.1)]}, None, curves.ANY) == []


@pytest.mark.parametrize("between", ["24", "29,24", "low,high", "24,25,26", "24,nan", ""])
def test_a_range_that_is_none_is_refused(between):
    with pytest.raises(ValueError, match="--between is .* must be two numbers in dB, the lower one first, such as 24.5,29"):
        parse_range(between)
