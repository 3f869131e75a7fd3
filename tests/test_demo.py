"""``python -m homework.demo``: a page that is complete, true to the models, and fit for any folder; and the Makefile."""

import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GRID, ROOT, SIZE, K, batch_for, build, files, run, sentence
from PIL import Image
from test_readme import execute

from homework import Compressor, ImageDataset, demo
from homework.core import checkpoint
from homework.datasets.image_files import read_image
from homework.datasets.images import to_float, to_uint8
from homework.evaluation import metrics, walkthrough
from homework.evaluation.codecs import CODECS, available
from homework.evaluation.pictures import heat

OPTIONS = ("--images", "pictures", "--autoencoder", "a.pth", "--tokenizer", "t.pth", "--autoregressive", "p.pth")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with three tiny models and three pictures, one of a name that HTML must not take literally."""
    monkeypatch.chdir(tmp_path)
    for path, name in (("a", "PatchAutoEncoder"), ("t", "BSQPatchAutoEncoder"), ("p", "AutoregressiveModel")):
        checkpoint.save(build(name), f"{path}.pth")
    Path("pictures").mkdir()
    for i, name in enumerate(("0.jpg", "1.jpg", "<h2>a&b'.jpg")):
        image = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(image).save(Path("pictures", name))
    return tmp_path


class Page(HTMLParser):
    """What a page refers to, its tags, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.open, self.headings, self.text = [], [], 0, ""
        self.feed(path.read_text("utf-8"))
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset", "data")]
        self.headings += tag == "h2"
        if tag not in ("meta", "img", "br", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.links += [value for key, value in attributes if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def picture(name: str, out: str = "demo") -> np.ndarray:
    return np.asarray(Image.open(Path(out, f"{name}.png")))


# --- the page --------------------------------------------------------------------------------------------------------------


def test_the_page_holds_all_it_refers_to_and_nothing_of_this_machine(command, folder):
    done = command("demo", *OPTIONS, "--n_generate", 2)
    assert done.returncode == 0, done.stderr
    page = Page(folder / "demo" / "index.html")
    n_rivals = sum(codec.name in ("AVIF", "WebP") for codec in available()[0])
    n_pictures = 5 * 3 + 2 + 1 + 5 * (1 + n_rivals) + 4 * 4  # of images, generated, of the dial, and from coarse to fine
    assert sorted(page.links) == sorted(set(page.links)) and len(page.links) == n_pictures
    compressed = {f"compressed_{i}.hwi" for i in range(3)}
    assert {*page.links, "index.html"} | compressed == files(folder / "demo")  # by plain names, and no file too many
    html = (folder / "demo" / "index.html").read_text("utf-8")
    assert str(folder) not in html and str(ROOT) not in html
    assert not re.search(r"(?i)https?:|//|url\(|@import|<script", html)  # offline
    assert "<h2>a&b'" in page.text and page.headings == 7
    titles = "Reconstructions", "Code usage", "Files", "One dial for quality", "Generated images", "From coarse to fine"
    assert all(title in page.text for title in (*titles, "Times"))


def test_pictures_are_those_of_the_models(command, folder):
    command("demo", *OPTIONS, "--n_generate", 1)
    ae, coder = checkpoint.load("a.pth"), checkpoint.load("t.pth")
    for i, path in enumerate(sorted(map(str, Path("pictures").iterdir()))):
        original = np.array(read_image(path))
        assert (picture(f"original_{i}") == original).all()
        x = to_float(torch.from_numpy(original))
        with torch.no_grad():
            for name, x_hat in ("plain", ae(x)[0]), ("coded", coder.decode_index(coder.encode_index(x))):
                difference = picture(f"{name}_{i}").astype(int) - to_uint8(x_hat).numpy()
                assert abs(difference).max() <= 1, name  # rounding alone: a batch adds up in another order
        assert picture(f"tokens_{i}").shape == picture(f"bits_{i}").shape == (*GRID, 3)
    assert picture("generation_0").shape == (*SIZE, 3)


def test_figures_on_the_page_are_those_of_the_models(command, folder):
    command("demo", *OPTIONS, "--n_generate", 1)
    text = " ".join(Page(folder / "demo" / "index.html").text.split())
    coder, prior = checkpoint.load("t.pth"), checkpoint.load("p.pth")
    paths = sorted(map(str, Path("pictures").iterdir()))
    x = to_float(torch.stack([torch.from_numpy(np.array(read_image(p))) for p in paths]))
    with torch.no_grad():
        losses = coder.loss(x)
        bits = prior.loss(coder.encode_index(x))["bits_per_image"].item()
    assert f"{losses['psnr']:.1f} dBtokenizer's PSNR" in text
    assert f"{bits:,.0f} bitsan image under the prior" in text
    assert f"{losses['entropy']:.2f} bitsentropy" in text and f"{losses['perplexity']:,.0f}perplexity" in text
    assert f"{Path(paths[0]).stat().st_size:,} bytes as JPEG" in text
    lengths = [Path(folder / "demo" / f"compressed_{i}.hwi").stat().st_size for i in range(len(paths))]
    assert f"{sum(lengths) / len(lengths):,.0f} bytesan image as a file" in text


def test_the_files_beside_the_page_decode_to_its_pictures(command, folder):
    command("demo", *OPTIONS, "--n_generate", 1)
    compressor = Compressor(checkpoint.load("t.pth"), checkpoint.load("p.pth"))
    for i in range(3):
        x_hat = to_uint8(compressor.decompress((folder / "demo" / f"compressed_{i}.hwi").read_bytes())).numpy()
        assert abs(picture(f"coded_{i}").astype(int) - x_hat).max() <= 1


def test_the_dial_shows_files_of_five_qualities_beside_no_larger_ones(folder):
    compressor = Compressor(checkpoint.load("t.pth"), checkpoint.load("p.pth"), effort=1)
    x = walkthrough.middle(ImageDataset(ROOT / "data" / "sample").batch(torch.tensor([3]))[0], 18, 23)
    shown, pictures = walkthrough.turn_dial(compressor, x, walkthrough.Stopwatch())
    assert shown["size"] == (18, 23) and [row["quality"] for row in shown["rows"]] == [10, 30, 50, 70, 90]
    assert (pictures["dial_original"][0] == to_uint8(x)).all()
    for i, row in enumerate(shown["rows"]):
        data = compressor.at(row["quality"]).compress(x)
        assert (pictures["dial_ours"][i] == to_uint8(compressor.decompress(data))).all()
        ours, *others = row["files"]
        assert ours["name"] == "ours" and ours["bytes"] == len(data)
        for file in row["files"]:
            decoded = to_float(pictures[f"dial_{file['name'].lower()}"][i])
            assert file["mse"] == pytest.approx((decoded - x).square().mean().item(), rel=1e-5)
            assert file["above"] == (file["bytes"] > len(data))


def test_files_within_a_size_are_the_largest_or_the_smallest_there_is():
    (image,) = to_uint8(ImageDataset(ROOT / "data" / "sample").batch(torch.tensor([3]))).numpy()
    codec = CODECS[1]
    lengths = [len(codec.encode(image, quality)) for quality in range(101)]
    sizes = [1, min(lengths), 900, 400, 10**6]
    for size, (quality, file) in zip(sizes, codec.within(image, sizes), strict=True):
        assert len(file) == lengths[quality]
        if size < min(lengths):
            assert len(file) == min(lengths)
        else:
            assert 0.95 * max(n for n in lengths if n <= size) <= len(file) <= size  # sizes need not rise with quality


def test_as_good_is_the_cheapest_file_of_no_larger_error():
    frames = ImageDataset(ROOT / "data" / "sample")
    x = frames.batch(torch.tensor([3]))
    (image,) = to_uint8(x).numpy()
    for codec in CODECS[:2]:
        by_quality = [codec.encode(image, q) for q in range(1 if codec.name == "JPEG" else 0, 101)]
        errors = [np.square(codec.decode(file) / 255.0 - image / 255.0).mean() for file in by_quality]
        for mse in (0.004, 0.001):
            good = min(len(file) for file, e in zip(by_quality, errors, strict=True) if e <= mse)
            assert good <= walkthrough.as_good(x, [mse])[codec.name][0] <= 1.1 * good


def test_the_seed_decides_the_generated_images(command):
    for out, seed in ("one", 5), ("two", 5), ("three", 6):
        command("demo", *OPTIONS, "--n_generate", 1, "--out", out, "--seed", seed)
    assert (picture("generation_0", "one") == picture("generation_0", "two")).all()
    assert (picture("generation_0", "one") != picture("generation_0", "three")).any()


def test_limit_and_image_size(command, folder):
    Image.new("RGB", (70, 40)).save("pictures/2.png")
    done = command("demo", *OPTIONS, "--limit", 2, "--n_generate", 1, "--out", "2026")
    n_rivals = sum(codec.name in ("AVIF", "WebP") for codec in available()[0])
    assert done.returncode == 0 and len(files(folder / "2026")) == 1 + 2 * 6 + 1 + 1 + 5 * (1 + n_rivals) + 4 * 4
    assert "--image_size" in sentence(command("demo", *OPTIONS, "--n_generate", 1))
    done = command("demo", *OPTIONS, "--n_generate", 1, "--image_size", "18x28")  # not a multiple of the patches
    assert done.returncode == 0, done.stderr
    assert {picture(n).shape for n in ("original_2", "plain_2", "coded_2", "generation_0")} == {(18, 28, 3)}
    assert "bytes as file" in (folder / "demo" / "index.html").read_text("utf-8")  # one of them is not a JPEG


# --- what it says when it cannot -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        (("--n_generate", 0), "--n_generate is 0"),
        (("--seed", "x"), "--seed is 'x'"),
        (("--limit", 1.5), "--limit is 1.5"),
        (("--images", "nowhere"), "nowhere"),
        (("--autoencoder", "none.pth"), "none.pth"),
        (("--autoencoder", "p.pth"), "p.pth holds an AutoregressiveModel"),
        (("--tokenizer", "a.pth"), "a.pth holds a PatchAutoEncoder"),
        (("--autoregressive", "other.pth"), "16 codes"),
        (("--image_size", "100x100"), "larger"),
        (("--cascade", "none.json"), "none.json"),
        (("--out", "a.pth"), "a.pth"),
    ],
)
def test_mistakes_are_reported_in_one_sentence_and_nothing_is_written(command, folder, wrong, message):
    checkpoint.save(build("AutoregressiveModel", n_tokens=K + 1), "other.pth")
    assert message in sentence(command("demo", *OPTIONS, "--n_generate", 1, *wrong))
    assert not (folder / "demo").exists()


def test_a_missing_package_is_named(command, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert 'the package jinja2; pip install "homework[report]"' in sentence(command("demo", *OPTIONS))
    assert not (folder / "demo").exists()


def test_the_package_does_without_those_of_the_reports(tmp_path):
    """In a fresh process, where only the commands that write reports may import them."""
    modules = "homework, homework.train, homework.tokenize, homework.compress, homework.generation, homework.sample"
    code = f"import sys; sys.modules |= dict.fromkeys(['jinja2', 'scipy', 'matplotlib', 'torchinfo']); import {modules}"
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# --- what it counts --------------------------------------------------------------------------------------------------------


def test_bits_are_those_of_the_loss_and_of_a_uniform_prior():
    prior = build("AutoregressiveModel").eval()
    grids = batch_for(prior)
    bits = prior.bits(grids)
    assert bits.shape == grids.shape and (bits > 0).all()
    assert bits.sum().item() / len(grids) == pytest.approx(prior.loss(grids)["bits_per_image"].item(), rel=1e-5)
    torch.nn.init.zeros_(prior.head.weight)
    assert torch.allclose(prior.bits(grids), torch.full(grids.shape, math.log2(K)))


def test_usage():
    usage = walkthrough.code_usage(torch.tensor([1, 2, 4, 5]).repeat(5), 6)
    assert (usage["used"], usage["entropy"], usage["perplexity"]) == (4, pytest.approx(2), pytest.approx(4))
    assert usage["log_frequencies"] == [1, 1, 1, 1, 0, 0] and usage["bits_per_token"] == math.log2(6)
    usage = walkthrough.code_usage(torch.ones(7, dtype=torch.int64), 2)
    assert (usage["used"], usage["entropy"], usage["perplexity"]) == (1, 0, 1)


def test_psnr():
    assert metrics.psnr(0.01) == pytest.approx(20) and metrics.psnr(0.0) == math.inf


@pytest.mark.parametrize("n_tokens", [2, 3, 16, 1000, 1024, 4096])
def test_every_code_has_a_colour_of_its_own(n_tokens):
    colours = walkthrough.code_colours(torch.arange(n_tokens).view(1, -1), n_tokens)
    assert colours.dtype == torch.uint8 and len(colours[0].unique(dim=0)) == n_tokens


def test_heat_rises():
    x = torch.tensor([-1.0, 0.0, 0.3, 0.6, 1.0, 9.0])
    brightness = heat(x).int().sum(dim=-1)
    assert (brightness.diff()[1:-1] > 0).all() and brightness[0] == brightness[1] and brightness[-1] == brightness[-2]


# --- the ways in -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def make(folder):
    """``make(...)`` with the project's Makefile and ``false`` for a Python, where nothing is installed yet."""
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    for name in "Makefile", "requirements.txt", "pyproject.toml":
        shutil.copy(ROOT / name, folder)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}  # CI runs the tests by make
    return lambda *arguments: subprocess.run(
        ["make", "PYTHON=false", *arguments], cwd=folder, env=env, capture_output=True, text=True
    )


def test_make_lists_its_targets(make):
    listed = make().stdout
    for target in "first-look", "demo", "test", "bench", "lint":
        assert f"make {target}" in listed


def test_without_the_samples_images_are_to_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="name images of your own by --images"):
        demo.demo()


def test_make_refuses_an_old_python_in_one_sentence(make, folder):
    done = make("demo")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode and len(lines) == 1 and "Python 3.11" in lines[0]
    assert not (folder / ".venv").exists()


def test_the_first_look_takes_every_step_in_a_folder_of_its_own(make, folder):
    shutil.copytree(ROOT / "data/sample", folder / "data/sample")
    python = folder / "bin" / "python"  # writes down what it is to run, which one process then runs, for torch starts slowly
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "python $*" >> commands\n')
    python.chmod(0o755)
    before = {path: (folder / path).read_bytes() for path in files(folder)}
    small = "--latent_dim 8 --encoder_blocks 1 --decoder_blocks 1 --detail 2 --patch_size 8 --epochs 1 --batch_size 5"
    smaller = ["SIZE=--image_size 16x24", f"TOKENIZER={small}", "PRIOR=--d_latent 8 --n_layers 1 --n_heads 1 --epochs 1"]
    done = make("first-look", f"BIN={python.parent}", "INSTALLED=", *smaller)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = (folder / "first_look/commands").read_text().splitlines()
    ran = execute(commands, "", folder / "first_look")
    assert ran.returncode == 0, ran.stderr
    steps = re.findall(r"^(\d)\. .*\n    python -m homework\.(\w+)", done.stdout, re.MULTILINE)
    assert steps == list(zip("123456", ("data", "train", "tokenize", "train", "generation", "compress"), strict=True))
    made = files(folder / "first_look")
    assert {"generated/sheet.png", "tokenizer.pth", "prior.pth", "images.hwa"} <= made
    assert len([path for path in made if path.startswith("again/")]) == 15
    after = {path: (folder / path).read_bytes() for path in files(folder) if not path.startswith("first_look/")}
    assert after == before  # nothing else is written or replaced


def test_continuous_integration_lints_and_tests():
    script = ROOT / ".ci" / "run"
    if not script.is_file():
        pytest.skip("the checkout's .ci/run is not here")
    assert os.access(script, os.X_OK) and "make lint test" in script.read_text("utf-8")
