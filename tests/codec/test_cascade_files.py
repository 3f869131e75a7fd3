"""Files under a cascade: there and back, damaged, foreign, and by the commands."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GRID, SIZE, K, build, files, run, sentence
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.mutations import mutate, repaired
from homework import Compressor, pillow
from homework.codec import archive, format
from homework.codec.cascade_compressor import CascadeCompressor
from homework.codec.loading import compressor_of
from homework.core import checkpoint
from homework.datasets.image_files import read_image
from homework.datasets.images import to_float, to_uint8
from homework.evaluation import codecs, measure
from homework.priors.cascade import Cascade
from homework.priors.pairs import load_models, model_files

BOOKS = {"map": "map", "coarse": 2, "fine": 1}  # patches of codebooks: 1x1, 2x3 and 4x6 codes for an image
CODES = {"map": 7, "coarse": 20, "fine": K}
N = 1 + 6 + 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with codebooks, the stages between them, cascade.json, and six pictures in photos/; nothing is trained."""
    folder = tmp_path_factory.mktemp("cascade")
    ae = build("PatchAutoEncoder", bottleneck=3)
    books, stages, names = {}, [], list(BOOKS)
    for i, (name, patch) in enumerate(BOOKS.items()):
        books[name] = build("SOM", seed=i, patch=patch, n_codes=CODES[name])
        books[name].set_autoencoder(ae)
        generator = torch.Generator().manual_seed(i)
        maps = [books[name].latent(torch.rand(1, *SIZE, 3, generator=generator) - 0.5) for _ in range(32)]
        books[name].lay_out(torch.cat(maps).flatten(0, 2))
        checkpoint.save(books[name], folder / f"{name}.pth")
    sizes = {"map": (1, 1), "coarse": (2, 3), "fine": GRID}
    for k, (coarse, fine) in enumerate(zip(names[:-1], names[1:], strict=True)):
        options = dict(zip(("height", "width", "coarse_height", "coarse_width"), sizes[fine] + sizes[coarse], strict=True))
        stage = build("CascadeStage", seed=k, num_enc_layers=k, n_tokens=CODES[fine], coarse_tokens=CODES[coarse], **options)
        with torch.no_grad():
            stage.head.weight *= 4  # strong opinions
        checkpoint.save(stage, folder / f"stage{k}.pth")
        stages.append(
            {"model_path": f"stage{k}.pth", "lr_codebook_path": f"{coarse}.pth", "hr_codebook_path": f"{fine}.pth"}
        )
    (folder / "cascade.json").write_text(json.dumps({"stages": stages, "num_images": 3}))
    checkpoint.save(build("GatedPixelCNN"), folder / "plain.pth")
    (folder / "photos").mkdir()
    for i in range(6):
        Image.fromarray(to_uint8(noise(seed=i)).numpy()).save(folder / "photos" / f"{i}.png")
    Image.fromarray(to_uint8(noise((25, 30))).numpy()).save(folder / "large.png")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def cascade(folder):
    with pytest.MonkeyPatch.context() as context:
        context.chdir(folder)
        return load_models("fine.pth", "cascade.json", torch.device("cpu"))[1]


@pytest.fixture(scope="module")
def compressor(cascade):
    return CascadeCompressor(cascade)


def noise(size: tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.rand(*size, 3, generator=torch.Generator().manual_seed(seed)) - 0.5


def packed(compressor: Compressor, images: list[torch.Tensor]) -> bytes:
    file, rows = io.BytesIO(), compressor.to_tokens(images)
    writer = archive.ArchiveWriter(file, compressor.models)
    crcs = [compressor.models.crc(SIZE, row) for row in rows]
    writer.add([f"{i}.png" for i in range(len(rows))], [SIZE] * len(rows), compressor.encode(rows), crcs)
    writer.close()
    return file.getvalue()


def rows_in(compressor: Compressor, data: bytes) -> dict:
    reader = archive.Reader(io.BytesIO(data))
    found = compressor.read([(reader, i) for i in range(len(reader.names))])
    return {reader.names[i]: row.tolist() for some in found for i, row in some.items()}


# --- there and back -------------------------------------------------------------------------------------------------------


def test_images_come_back_as_their_finest_grids_decoded(compressor, cascade):
    images = [noise(seed=i) for i in range(5)]
    files = compressor.compress_batch(images)
    grids = [cascade.encode(x[None]) for x in images]
    for data, x_hat, row, image in zip(
        files, compressor.decompress_batch(files), compressor.decompress_tokens(files), grids, strict=True
    ):
        assert torch.equal(x_hat, cascade.codebooks[-1].decode_index(image[-1][0]))
        assert row.shape == (1, N) and row[0].tolist() == torch.cat([grid.flatten() for grid in image]).tolist()
        bits = sum(cascade.bits(image))
        assert bits / 8 - 1 < len(data) - 18 < bits / 8 + 3
    assert len({len(data) for data in files}) > 1 and [compressor.compress(x) for x in images] == files


def test_a_head_names_all_models_of_the_cascade(compressor, cascade, here):
    """Another version of any of them is another prior; of the finest codebook also another tokenizer."""
    data, stages = compressor.compress(noise()), json.loads(Path("cascade.json").read_text())["stages"]
    for k in range(3):
        other = Cascade(stages)
        with torch.no_grad():
            next(iter(other.codebooks[k].parameters())).mul_(1.001)
        with pytest.raises(ValueError, match="another tokenizer" if k == 2 else "another prior"):
            CascadeCompressor(other).decompress(data)
    for k in range(2):
        other = Cascade(stages)
        with torch.no_grad():
            other.stages[k].row += 0.001
        with pytest.raises(ValueError, match="another prior"):
            CascadeCompressor(other).decompress(data)
    plain = Compressor(cascade.codebooks[-1], build("GatedPixelCNN"))
    for one, two in (plain, compressor), (compressor, plain):
        with pytest.raises(ValueError, match="another prior"):
            one.decompress(two.compress(noise()))


def test_a_checksum_covers_the_tokens_of_all_grids(compressor):
    data = compressor.compress(noise())
    reader, (row,) = archive.Reader(io.BytesIO(data)), compressor.decompress_tokens([data])
    for n in range(N):
        changed = row.copy()
        changed[0, n] = (changed[0, n] + 1) % 7
        with pytest.raises(ValueError, match="checksum of its tokens"):
            reader.check_tokens(0, compressor.models, changed)


@pytest.mark.parametrize("n, codes", [(0, 7), (1, 20), (6, 20), (7, K), (30, K)])
def test_tokens_that_a_codebook_does_not_have_are_refused(compressor, n, codes):
    row = np.zeros((1, 1, N), np.int64)
    row[0, 0, n] = codes - 1
    assert np.array_equal(compressor.decompress_tokens(compressor.compress_tokens(row, SIZE))[0], row[0])
    for token in codes, -1:
        row[0, 0, n] = token
        with pytest.raises(ValueError, match=f"Tokens must be from 0 to {codes - 1}"):
            compressor.compress_tokens(row, SIZE)


def test_what_becomes_of_the_models_changes_no_file(here):
    cascade = Cascade(json.loads(Path("cascade.json").read_text())["stages"])
    compressor = CascadeCompressor(cascade)
    data = compressor.compress(noise())
    with torch.no_grad():
        for parameter in cascade.parameters():
            parameter.zero_()
    assert compressor.compress(noise()) == data


def test_other_floats_are_refused_before_anything_is_decoded(compressor, cascade, monkeypatch):
    """Of whichever stage."""
    data = compressor.compress(noise())
    steps = type(cascade.stages[0]).steps
    for k in range(2):

        def others(stage, coarse, *args, k=k):
            step = steps(stage, coarse, *args)
            changed = stage.config["num_enc_layers"] == k
            return lambda tokens: step(tokens) * (1 + 2**-20 * changed)

        with monkeypatch.context() as patched:
            patched.setattr(type(cascade.stages[0]), "steps", others)
            other = CascadeCompressor(cascade)
            patched.setattr(Compressor, "decode", lambda *args: pytest.fail("a token was decoded"))
            with pytest.raises(ValueError, match="a machine whose floats differ from this one's"):
                other.decompress(data)


def test_the_bits_of_patches_are_those_of_all_tokens(compressor, cascade):
    image = to_uint8(noise()).numpy()
    x = to_float(torch.from_numpy(image))
    bits = measure.bit_map(compressor, compressor.to_tokens(x[None])[0])
    assert bits.shape == GRID and float(bits.sum()) == pytest.approx(sum(cascade.bits(cascade.encode(x[None]))), rel=1e-4)


# --- what is wrong with a file --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(compressor):
    """One image's file and an archive, and the rows in both."""
    written = compressor.compress(noise()), packed(compressor, [noise(seed=i) for i in range(3)])
    return [(data, rows_in(compressor, data)) for data in written]


@given(st.integers(0, 2**32 - 1), st.sampled_from([mutate, repaired]), st.integers(0, 1))
def test_no_mutation_gives_a_wrong_image(compressor, written, seed, change, which):
    data, right = written[which]
    try:
        found = rows_in(compressor, change(data, np.random.default_rng(seed)))
    except ValueError as error:
        assert re.match("The file.* (is not a file|is damaged|is cut short|is longer|was written|has)", str(error)), error
    else:
        assert all(row in right.values() for row in found.values())


@pytest.mark.parametrize("which", [0, 1])
def test_every_shorter_file_is_refused(compressor, written, which):
    data, _ = written[which]
    for n in range(len(data)):
        with pytest.raises(ValueError, match=f"cut short: it has {n}"):
            rows_in(compressor, data[:n])


def test_a_size_that_the_cascade_does_not_know_is_refused_in_both_directions(compressor):
    with pytest.raises(ValueError, match="Images of 25x30 have grids of 5x6, but this cascade knows 4x6; .* --image_size"):
        compressor.compress(noise((25, 30)))
    (row,) = compressor.to_tokens(noise()[None])
    for size in (25, 30), (20, 31), (5, 5):  # with all checksums right
        data = format.image_file(compressor.models, size, compressor.encode(row[None])[0], compressor.models.crc(size, row))
        with pytest.raises(ValueError, match="The file is damaged: its size is not one that its models know"):
            compressor.decompress(data)


def test_a_cropped_image_keeps_its_size(compressor):
    assert compressor.decompress(compressor.compress(noise((20, 27)))).shape == (20, 27, 3)


# --- the commands ---------------------------------------------------------------------------------------------------------


def test_a_folder_there_and_back_in_fresh_processes(here, cascade, tmp_path):
    out, back = tmp_path / "a.hwa", tmp_path / "back"
    done = run("-m", "homework.compress", "compress", "fine.pth", "cascade.json", "photos", out, "--verify", cwd=here)
    assert done.returncode == 0 and "verified" in done.stdout and "6 images" in done.stdout, done.stderr
    done = run("-m", "homework.compress", "decompress", "fine.pth", "cascade.json", out, back, cwd=here, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    assert files(back) == {f"{i}.png" for i in range(6)}
    for i in range(6):
        x = to_float(torch.from_numpy(np.array(read_image(Path("photos", f"{i}.png")))))
        wanted = to_uint8(cascade.decode(cascade.encode(x[None]))[-1][0]).numpy().astype(int)
        assert abs(np.array(read_image(back / f"{i}.png")).astype(int) - wanted).max() <= 1  # of floats in another batch


def test_pillow_writes_and_opens_them_by_a_cascade(here, command, tmp_path, monkeypatch):
    monkeypatch.setattr(pillow, "_named", [])
    pillow.use("fine.pth", "cascade.json", "cpu")
    with Image.open("photos/0.png") as image:
        image.save(tmp_path / "a.hwi")
        with pytest.raises(ValueError, match="without a search"):
            image.save(tmp_path / "b.hwi", effort=1)
    assert command("compress", "fine.pth", "cascade.json", "photos/0.png", tmp_path / "c.hwi").returncode == 0
    assert (tmp_path / "a.hwi").read_bytes() == (tmp_path / "c.hwi").read_bytes()
    done = command("compress", "decompress", "fine.pth", "cascade.json", tmp_path / "a.hwi", tmp_path / "0.png")
    assert done.returncode == 0 and np.array_equal(Image.open(tmp_path / "a.hwi"), Image.open(tmp_path / "0.png"))


def test_images_are_appended_and_one_is_taken_out(here, command, tmp_path):
    out, one = tmp_path / "a.hwa", tmp_path / "one.png"
    for images, options in (["photos/0.png", "photos/1.png"], []), (["photos/2.png"], ["--append", "--verify"]):
        done = command("compress", "fine.pth", "cascade.json", *images, out, *options)
        assert done.returncode == 0, done.stderr
    done = command("compress", "decompress", "fine.pth", "cascade.json", out, one, "--only", "2.png")
    assert done.returncode == 0 and one.is_file(), done.stderr


def test_one_image_goes_into_a_file_that_says_what_it_is(here, command, compressor, tmp_path):
    out = tmp_path / "a.hwi"
    assert command("compress", "fine.pth", "cascade.json", "photos/0.png", out, "--effort", 0).returncode == 0
    facts = json.loads(command("compress", "info", out, "--json").stdout)
    assert (facts["format"], facts["exact"], facts["patch"], facts["kind"]) == (6, False, 5, "image")
    known = [json.loads(command("compress", "info", path, "--json").stdout) for path in ("fine.pth", "cascade.json")]
    assert [one["fingerprint"] for one in known] == [facts["tokenizer"], facts["prior"]]
    assert (known[1]["role"], known[1]["model"]) == ("prior", "Cascade")
    assert "4 tokens" in command("compress", "info", out).stdout


WRONG = {
    "another codebook": (["coarse.pth", "cascade.json", "photos"], "coarse.pth is not the finest codebook of cascade.json; "
                                                                   "name fine.pth, which is."),
    "no tokenizer": (["stage1.pth", "cascade.json", "photos"], "stage1.pth holds a CascadeStage, but a tokenizer is needed"),
    "the order": (["cascade.json", "fine.pth", "photos"], "cascade.json is damaged or not a checkpoint"),
    "no cascade": (["fine.pth", "none.json", "photos"], "none.json"),
    "other JSON": (["fine.pth", "other.json", "photos"], 'A cascade is {"stages"'),
    "no JSON": (["fine.pth", "text.json", "photos"], "text.json is not JSON"),
    "another size": (["fine.pth", "cascade.json", "large.png"], "this cascade knows 4x6; scale them by --image_size"),
    **{option: (["fine.pth", "cascade.json", "photos", f"--{option}", value], "without a search for better ones; leave")
       for option, value in (("effort", 5), ("quality", 60), ("lmbda", 0.02), ("target_bytes", 90), ("target_psnr", 20))},
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("tool", ["compress", "evaluate"])
def test_what_does_not_go_together_ends_in_one_sentence(here, command, tmp_path, tool, what):
    (here / "other.json").write_text('{"num_images": 3}')
    (here / "text.json").write_text("stages")
    (models, message), out = WRONG[what], tmp_path / "out"
    if tool == "evaluate" and what not in ("lmbda", "target_bytes", "target_psnr"):
        done = command("evaluate", *models[:3], *models[3:], "--out", out, "--limit", 1)
    else:
        done = command("compress", *models[:3], out, *models[3:])
    assert message in sentence(done) and not out.is_file()


def test_evaluate_measures_a_cascade(here, command, tmp_path, monkeypatch):
    rivals = [codec for codec in codecs.available()[0] if codec.name == "JPEG"]
    monkeypatch.setattr(codecs, "available", lambda: (rivals, []))
    out = tmp_path / "report"
    options = "--limit", 2, "--effort", 0, "--out", out
    done = command("evaluate", "fine.pth,fine.pth", "cascade.json,plain.pth", "photos", *options)
    assert done.returncode == 0, done.stderr
    assert (out / "index.html").is_file() and (out / "bits_0.png").is_file()
    assert len(model_files("fine.pth", "cascade.json")) == 5


def test_a_compressor_is_made_of_what_goes_together(cascade):
    tokenizer, cpu = cascade.codebooks[-1], torch.device("cpu")
    made = [compressor_of(tokenizer, prior, cpu, 3, *e) for prior in (cascade, build("GatedPixelCNN")) for e in ([], [0])]
    assert [(type(c), c.effort) for c in made] == [(CascadeCompressor, 0)] * 2 + [(Compressor, 5), (Compressor, 0)]
    with pytest.raises(ValueError, match="a tokenizer and a prior, but these are a SOM and a Cascade"):
        Compressor(tokenizer, cascade)
