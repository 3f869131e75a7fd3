"""``python -m homework.generation``: files, seeds, completion, and what it says when it cannot."""

import importlib
import inspect
import re

import numpy as np
import pytest
import torch
from conftest import GRID, SIZE, K, build, file_size_limit, files, run, sentence
from PIL import Image

from homework.core import checkpoint, cli, devices
from homework.datasets.image_files import read_image
from homework.priors import images, uniform


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with a tokenizer t.pth, a prior p.pth and their like."""
    monkeypatch.chdir(tmp_path)
    checkpoint.save(build("BSQPatchAutoEncoder"), "t.pth")
    checkpoint.save(build("AutoregressiveModel"), "p.pth")
    return tmp_path


@pytest.fixture
def generate(command):
    def call(*arguments):
        return command("generation", *arguments, "--image_size", f"{SIZE[0]}x{SIZE[1]}")

    return call


@pytest.fixture
def grids(monkeypatch):
    """Every grid that is decoded, in order."""
    seen, decode = [], images.decode
    monkeypatch.setattr(images, "decode", lambda coder, g, more: (seen.extend(g), decode(coder, g, more))[1])
    return seen


def pictures(folder) -> list[np.ndarray]:
    n = len(list(folder.glob("generation_*.png")))
    return [np.asarray(Image.open(folder / f"generation_{i}.png")) for i in range(n)]


# --- what is written ------------------------------------------------------------------------------------------------------


def test_files_are_numbered_from_zero_and_of_the_right_size(generate, folder):
    done = generate("t.pth", "p.pth", 5, "new/out", "--batch_size", 2)
    assert done.returncode == 0, done.stderr
    assert files(folder / "new" / "out") == {f"generation_{i}.png" for i in range(5)} | {"sheet.png"}
    for picture in pictures(folder / "new" / "out"):
        assert picture.shape == (*SIZE, 3) and picture.dtype == np.uint8
    assert len({p.tobytes() for p in pictures(folder / "new" / "out")}) == 5  # all different


def test_the_sheet_has_the_images_in_rows(generate, folder):
    generate("t.pth", "p.pth", 5, "out")
    sheet, (H, W) = np.asarray(Image.open(folder / "out" / "sheet.png")), SIZE
    for i, picture in enumerate(pictures(folder / "out")):
        top, left = (4 + (side + 4) * at for side, at in zip(SIZE, divmod(i, 2), strict=True))
        assert np.array_equal(sheet[top : top + H, left : left + W], picture)
    assert sheet.shape == (3 * (H + 4) + 4, 2 * (W + 4) + 4, 3)


def test_what_an_earlier_run_left_is_said_and_removed_on_demand_alone(generate, folder):
    kept = {"mine.png", "generation_old.png", "sheet.png", "notes.txt"}
    generate("t.pth", "p.pth", 4, "out")
    for name in kept - {"sheet.png"}:
        (folder / "out" / name).write_text("mine")
    done = generate("t.pth", "p.pth", 2, "out")
    assert "out: 2 pictures of an earlier run, such as generation_2.png, stayed; --overwrite removes them." in done.stderr
    assert files(folder / "out") == kept | {f"generation_{i}.png" for i in range(4)}
    done = generate("t.pth", "p.pth", 2, "out", "--overwrite")
    assert done.returncode == 0 and "earlier run" not in done.stderr
    assert files(folder / "out") == kept | {f"generation_{i}.png" for i in range(2)}
    sentence(generate("t.pth", "none.pth", 1, "out", "--overwrite"))  # nothing new: the old ones stay
    assert files(folder / "out") == kept | {f"generation_{i}.png" for i in range(2)}


def test_pictures_are_the_decoded_grids(generate, folder, grids):
    generate("t.pth", "p.pth", 3, "out")
    with torch.no_grad():
        x = (checkpoint.load("t.pth").decode_index(torch.stack(grids)) + 0.5).clamp(0, 1) * 255
    assert np.abs(np.stack(pictures(folder / "out")) - x.numpy()).max() <= 0.501


def test_the_size_is_by_default_that_of_the_priors_grid(command, folder):
    done = command("generation", "t.pth", "p.pth", 2, "out")
    assert done.returncode == 0 and "out/sheet.png: 2 images of 30x20 pixels" in done.stdout
    assert pictures(folder / "out")[0].shape == (*SIZE, 3)
    assert "out/sheet.png: 1 image of 150x100 pixels" in command("generation", "t.pth", "uniform", 1, "out").stdout


def test_a_size_that_patches_do_not_divide_is_cropped(command, folder):
    assert command("generation", "t.pth", "p.pth", 1, "out", "--image_size", "18x27").returncode == 0
    assert pictures(folder / "out")[0].shape == (18, 27, 3)


def test_two_processes_sample_what_one_does(generate, folder):
    options = ["t.pth", "p.pth", 5, "out", "--batch_size", 2, "--seed", 3, "--image_size", f"{SIZE[0]}x{SIZE[1]}"]
    assert generate(*options[:3], "one", *options[4:8]).returncode == 0
    done = run("-m", "homework.generation", *options, cwd=folder, processes=2)
    assert done.returncode == 0 and done.stdout.count("5 images") == 1, done.stderr
    assert files(folder / "out") == files(folder / "one") == {"sheet.png", *(f"generation_{i}.png" for i in range(5))}
    for name in files(folder / "one"):
        assert (folder / "out" / name).read_bytes() == (folder / "one" / name).read_bytes(), name


def test_a_seed_repeats_and_another_differs(generate, folder):
    for out, seed in ("a", []), ("b", ["--seed", 0]), ("c", ["--seed", 1]):
        assert generate("t.pth", "p.pth", 2, out, *seed).returncode == 0
    a, b, c = ([p.tobytes() for p in pictures(folder / out)] for out in "abc")
    assert a == b and not set(a) & set(c)


@pytest.mark.parametrize("options", [["--temperature", 0], ["--top_k", 1], ["--top_p", 1e-6]])
def test_the_safest_settings_take_the_most_probable_tokens(generate, grids, options):
    generate("t.pth", "p.pth", 2, "out", *options)
    expected = checkpoint.load("p.pth").generate(1, *GRID, temperature=0)[0]
    assert len(grids) == 2 and all(torch.equal(g, expected) for g in grids)


def test_settings_reach_the_sampler(generate, grids):
    """A hot prior uses more codes than a cold one."""
    generate("t.pth", "p.pth", 4, "cold", "--temperature", 0.2)
    generate("t.pth", "p.pth", 4, "hot", "--temperature", 5)
    cold, hot = (len(torch.stack(g).unique()) for g in (grids[:4], grids[4:]))
    assert cold < hot <= K


@pytest.mark.parametrize("valid", [{}, {"valid": {"loss": 2.6}}])
def test_of_the_candidates_the_one_with_bits_nearest_to_those_of_the_data_is_kept(valid):
    prior = build("AutoregressiveModel").eval()
    prior.meta = valid
    drawn = prior.generate(10, *GRID, generator=torch.Generator().manual_seed(0)).view(2, 5, *GRID)
    kept = images.most_typical(prior, drawn)
    bits = prior.bits(drawn.flatten(0, 1)).sum(dim=(1, 2)).view(2, 5)
    mean = 2.6 / np.log(2) * 24 if valid else bits.mean()
    assert torch.equal(kept, torch.stack([some[(b - mean).abs().argmin()] for some, b in zip(drawn, bits, strict=True)]))
    assert not kept.is_inference()


def test_candidates_are_drawn_together(generate, grids):
    assert generate("t.pth", "p.pth", 3, "out", "--candidates", 4, "--batch_size", 2).returncode == 0
    prior, draws = checkpoint.load("p.pth"), (torch.Generator().manual_seed(0), devices.generator(0, 1))  # of either batch
    drawn = [prior.generate(4 * B, *GRID, generator=g).view(B, 4, *GRID) for B, g in zip((2, 1), draws, strict=True)]
    assert torch.equal(torch.stack(grids), torch.cat([images.most_typical(prior, some) for some in drawn]))


def test_names_that_are_numbers(command, folder):
    checkpoint.save(build("AutoregressiveModel"), "7")
    done = command("generation", "t.pth", "7", 1, 2026, "--image_size", "20x30")
    assert done.returncode == 0, done.stderr
    assert files(folder / "2026") == {"generation_0.png", "sheet.png"}


def test_the_shipped_models_have_names(command, folder):
    done = command("generation", "BSQPatchAutoEncoder", "uniform", 1, "out")
    assert done.returncode == 0 and files(folder / "out") == {"generation_0.png", "sheet.png"}, done.stderr


def test_it_runs_as_a_program(folder):
    done = run("-m", "homework.generation", "t.pth", "p.pth", "1", "out", "--image_size=20x30", cwd=folder)
    assert done.returncode == 0 and files(folder / "out") == {"generation_0.png", "sheet.png"}, done.stderr


# --- completion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 3, 4])
def test_completion_keeps_the_first_token_rows(generate, grids, data, rows):
    image = data / "valid" / "000.jpg"
    done = generate("t.pth", "p.pth", 3, "out", "--complete", image, "--rows", rows, "--batch_size", 2)
    assert done.returncode == 0, done.stderr
    x = torch.from_numpy(np.array(read_image(image))) / 255 - 0.5
    with torch.no_grad():
        tokens = checkpoint.load("t.pth").encode_index(x)
    assert len(grids) == 3 and all(torch.equal(g[:rows], tokens[:rows]) for g in grids)
    if rows == 0:  # nothing is kept: the same as without an image
        generate("t.pth", "p.pth", 3, "other", "--batch_size", 2)
        assert all(torch.equal(a, b) for a, b in zip(grids[:3], grids[3:], strict=True))
    elif rows < 4:
        assert len({tuple(g.flatten().tolist()) for g in grids}) == 3  # the rest is drawn


def test_completion_scales_a_picture_of_another_size(generate, grids, data, folder):
    with Image.open(data / "valid" / "000.jpg") as image:
        image.resize((90, 60)).save("large.png")
    assert generate("t.pth", "p.pth", 1, "out", "--complete", "large.png", "--rows", 2).returncode == 0
    assert grids[0].shape == GRID and pictures(folder / "out")[0].shape == (*SIZE, 3)


# --- the prior that knows nothing -----------------------------------------------------------------------------------------


def test_uniform_is_a_prior_by_position_and_by_name(generate, folder, grids):
    assert generate("t.pth", "uniform", 3, "a").returncode == 0
    assert generate("t.pth", 3, "b", "--prior", "uniform").returncode == 0
    assert generate("t.pth", "uniform", 3, "c", "--seed", 1).returncode == 0
    a, b, c = ([p.tobytes() for p in pictures(folder / out)] for out in "abc")
    assert a == b and len(set(a + c)) == 6
    assert all(g.shape == GRID and g.dtype == torch.int64 for g in grids)


def test_uniform_takes_a_named_prior_as_well(generate, folder):
    for arguments in ("t.pth", "p.pth", 1, "a"), ("t.pth", 1, "b", "--prior", "p.pth"):
        assert generate(*arguments).returncode == 0
    assert pictures(folder / "a")[0].tobytes() == pictures(folder / "b")[0].tobytes()


def test_uniform_draws_all_codes_alike_and_independently():
    grids = uniform.Uniform(K).generate(500, *GRID, generator=torch.Generator().manual_seed(0))
    n = grids.numel()  # 12 000
    counts = torch.bincount(grids.flatten(), minlength=K)
    assert len(counts) == K and ((counts - n / K) ** 2 / (n / K)).sum() < 40  # chi-square, 15 degrees: 1 in 2000 is above
    for a, b in ((grids[:, :, 1:], grids[:, :, :-1]), (grids[:, 1:], grids[:, :-1]), (grids[1:], grids[:-1])):
        pairs = torch.bincount((a * K + b).flatten(), minlength=K * K)
        expected = a.numel() / K**2
        assert ((pairs - expected) ** 2 / expected).sum() < 340  # 255 degrees: 1 in 3000 is above


def test_uniform_completes_too_and_heeds_no_temperature(generate, grids, data):
    image = ["--complete", data / "valid" / "000.jpg", "--rows", 2]
    for i, options in enumerate([[], ["--temperature", 0], ["--top_k", 1], ["--top_p", 0.1]]):
        assert generate("t.pth", "uniform", 2, f"out{i}", *image, *options).returncode == 0
    x = torch.from_numpy(np.array(read_image(data / "valid" / "000.jpg"))) / 255 - 0.5
    with torch.no_grad():
        tokens = checkpoint.load("t.pth").encode_index(x)
    assert all(torch.equal(g[:2], tokens[:2]) for g in grids) and not torch.equal(grids[0], grids[1])
    assert all(torch.equal(torch.stack(grids[2 * i : 2 * i + 2]), torch.stack(grids[:2])) for i in (1, 2, 3))


@pytest.mark.parametrize("wrong", ["p.pth", "ae.pth"])
def test_uniform_needs_a_tokenizer(generate, wrong):
    checkpoint.save(build("PatchAutoEncoder"), "ae.pth")
    message = sentence(generate(wrong, "uniform", 1, "out"))
    assert "tokenizer is needed" in message and wrong in message


# --- mistakes -------------------------------------------------------------------------------------------------------------

BAD_OPTIONS = [
    ("rows", -1), ("rows", 5), ("rows", 2.5), ("rows", "two"),
    ("batch_size", 0), ("batch_size", 1.5), ("batch_size", "x"),
    ("temperature", -1), ("temperature", "hot"), ("temperature", "nan"),
    ("top_k", 0), ("top_k", 2.5), ("top_k", "x"), ("top_p", 0), ("top_p", 1.5), ("top_p", "x"),
    ("seed", "x"), ("seed", 1.5), ("device", "abacus"), ("device", "cuda:99"),
]  # fmt: skip


@pytest.mark.parametrize("option, value", BAD_OPTIONS)
def test_bad_options_are_named_and_nothing_is_written(generate, folder, data, option, value):
    image = [] if option != "rows" else ["--complete", data / "valid" / "000.jpg"]
    message = sentence(generate("t.pth", "p.pth", 1, "out", f"--{option}", value, *image))
    assert option in message and str(value) in message
    assert files(folder) == {"t.pth", "p.pth"}


@pytest.mark.parametrize("n", [0, -2, 1.5, "many", "True"])
def test_a_bad_number_of_images_is_named(generate, folder, n):
    assert str(n) in sentence(generate("t.pth", "p.pth", n, "out")) and files(folder) == {"t.pth", "p.pth"}


def test_a_tokenizer_and_a_prior_that_do_not_go_together(generate, folder):
    checkpoint.save(build("BSQPatchAutoEncoder", codebook_bits=5), "five.pth")
    message = sentence(generate("five.pth", "p.pth", 1, "out"))
    assert all(part in message for part in ("five.pth", "32", "p.pth", "16")) and not (folder / "out").exists()


@pytest.mark.parametrize("pair", [("p.pth", "t.pth"), ("t.pth", "t.pth"), ("p.pth", "p.pth"), ("ae.pth", "p.pth")])
def test_checkpoints_in_the_wrong_roles_are_named(generate, pair):
    checkpoint.save(build("PatchAutoEncoder"), "ae.pth")
    message = sentence(generate(*pair, 1, "out"))
    assert "is needed" in message and any(name in message for name in pair)


@pytest.mark.parametrize("pair", [("none.pth", "p.pth"), ("t.pth", "none.pth"), ("bad.pth", "p.pth"), ("t.pth", "bad.pth")])
def test_missing_and_damaged_checkpoints_are_named(generate, folder, pair):
    (folder / "bad.pth").write_bytes((folder / "p.pth").read_bytes()[:-100])
    message = sentence(generate(*pair, 1, "out"))
    assert ("none.pth" if "none.pth" in pair else "bad.pth") in message and not (folder / "out").exists()


def test_a_grid_larger_than_the_priors_is_reported_with_the_remedy(command):
    message = sentence(command("generation", "t.pth", "p.pth", 1, "out", "--image_size", "40x30"))
    assert "8x6" in message and "4x6" in message and "--height" in message


@pytest.mark.parametrize("size", ["20", "20x0", "20x30x3", "axb", "-20x30"])
def test_a_bad_image_size_is_named(command, size):
    message = sentence(command("generation", "t.pth", "p.pth", 1, "out", f"--image_size={size}"))
    assert size in message and "HEIGHTxWIDTH" in message


def test_a_missing_or_broken_picture_to_complete_is_named(generate, folder):
    assert "none.jpg" in sentence(generate("t.pth", "p.pth", 1, "out", "--complete", "none.jpg", "--rows", 1))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff" + bytes(100))
    assert "broken.jpg" in sentence(generate("t.pth", "p.pth", 1, "out", "--complete", "broken.jpg", "--rows", 1))


def test_an_output_path_that_is_a_file_is_named(generate, folder):
    (folder / "out").write_text("mine")
    assert "out" in sentence(generate("t.pth", "p.pth", 1, "out")) and (folder / "out").read_text() == "mine"


def test_a_full_disk_leaves_no_half_written_picture(generate, folder):
    (folder / "out").mkdir()
    with file_size_limit(500):  # of some 1800 bytes
        sentence(generate("t.pth", "p.pth", 1, "out"))
    assert files(folder / "out") == set()


@pytest.mark.parametrize("arguments", [[], ["t.pth"], ["t.pth", "p.pth", 1], ["t.pth", "p.pth", 1, "out", "--no_such", 1]])
def test_missing_and_unknown_arguments_point_to_the_help(command, folder, arguments):
    assert "--help" in sentence(command("generation", *arguments))
    assert files(folder) == {"t.pth", "p.pth"}


# --- help -----------------------------------------------------------------------------------------------------------------


def check_help(text: str, function) -> None:
    """Every argument is there, with its default and a line of its own about what it is."""
    described = inspect.getdoc(function)
    assert described.splitlines()[0][:40] in text  # what the command does
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            assert name in text.lower()
        elif parameter.default is parameter.empty:
            assert name.upper() in text
        else:
            known = parameter.default is not None and parameter.default is not False
            default = f"Default:\\s+{re.escape(str(parameter.default))}$" if known else r"\w"
            assert re.search(rf"^  --{name}\b.*(\n {{28}}.*)*?{default}", text, re.M), f"--{name} and its default"
        assert re.search(rf"^ *(\w+, )*{name}(, \w+)*: \S", described, re.M), f"{name} is not described"


@pytest.mark.parametrize("module", ["train", "tokenize", "generation"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_option_with_its_default(command, module, flag):
    done = command(module, flag)
    assert done.returncode == 0
    functions = vars(importlib.import_module(f"homework.{module}"))
    check_help(done.stdout, functions["generate" if module == "generation" else module])


@pytest.mark.parametrize("name", ["download", "import"])
def test_help_of_the_data_commands(name, monkeypatch, capsys):
    from homework.datasets.download import download, import_

    commands = {"download": download, "import": import_}
    monkeypatch.setattr("sys.argv", ["data.py", name, "--help"])
    cli.main("python -m homework.data", commands)
    check_help(capsys.readouterr().out, commands[name])
