"""How a command answers: its help, one sentence for a mistake, and what it leaves behind."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, build, run, sentence
from PIL import Image
from test_arguments import functions
from tqdm import tqdm

from homework.__main__ import COMMANDS
from homework.core import arguments, checkpoint, cli
from homework.core.registry import MODELS


@pytest.mark.parametrize("words", [["compress", "--help"], ["compress", "info", "x"], ["compress", "info", "--x"]])
def test_the_process_stays_as_it_was(words, command):
    before = dict(os.environ)
    command(*words)
    assert dict(os.environ) == before


# --- help -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", functions())
def test_a_page_of_help_has_two_examples_that_are_calls(name, capsys):
    function = functions()[name]
    cli.run(f"python -m homework.{name}", function, ["--help"])
    page = capsys.readouterr().out
    examples = re.findall(r"^    python -m homework\.(.*)", page, re.MULTILINE)
    assert len(examples) == 2 and "Union" not in page and "Optional" not in page
    for example in examples:
        assert example.startswith(name)
        words = shlex.split(example.removeprefix(name))
        if "--config" in words:  # such a file has what is missing
            assert words[:2] == ["--config", "cascade.json"]
            words = ["[]", *words[2:]]
        arguments.bind(function, words)


@pytest.mark.parametrize("name", ["train", "summary"])
def test_help_names_the_models_and_the_options_of_one(name, capsys):
    for words in ["--help"], ["GatedPixelCNN", "--help"]:
        cli.run(name, functions()[name], words)
        page = capsys.readouterr().out
        assert all(model in page for model in MODELS)
        assert ("--first_kernel=INTEGER" in page) == ("Options of GatedPixelCNN:" in page) == (len(words) == 2)


# --- mistakes -------------------------------------------------------------------------------------------------------------


ENDS = [(ValueError("Broken."), 1, "error: Broken."), (KeyboardInterrupt(), 130, "Stopped.")]


@pytest.mark.parametrize("error, code, text", ENDS)
@pytest.mark.parametrize("leave", [True, False])
def test_what_ends_a_command_is_on_a_line_of_its_own_below_its_bars(capsys, monkeypatch, error, code, text, leave):
    def work() -> None:
        for _ in tqdm(range(3), "working", leave=leave):
            raise error

    monkeypatch.setattr(sys, "argv", ["work"])
    with pytest.raises(SystemExit) as end:
        cli.main("work", work)
    assert end.value.code == code and capsys.readouterr().err.splitlines()[-1] == text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "a.png").write_bytes(b"a picture")
    (tmp_path / "notes.txt").write_text("notes")
    checkpoint.save(build("BSQPatchAutoEncoder"), "t.pth")
    checkpoint.save(build("AutoregressiveModel"), "p.pth")
    return tmp_path


@pytest.mark.parametrize("words, message", [
    (["tokenize", "pictures", "o.pth", "t.pth"], "pictures is a folder, but a checkpoint (.pth) is needed here."),
    (["tokenize", "pictures", "t.pth", "o.pth"], "pictures is a folder, but a checkpoint (.pth) is needed here."),
    (["compress", "pictures", "t.pth", "p.pth", "x.hwa"], "pictures is a folder, but a checkpoint (.pth) is needed here."),
    (["tokenize", "a.png", "o.pth", "t.pth"], "a.png is an image, but a checkpoint (.pth) is needed here."),
    (["tokenize", "p.pth", "o.pth", "pictures"], "p.pth holds an AutoregressiveModel, but a tokenizer is needed here."),
    (["generation", "p.pth", "t.pth", "1", "out"], "p.pth holds an AutoregressiveModel, but a tokenizer is needed here."),
    (["train", "pictures"], "pictures is a folder; a model's name or a checkpoint belongs here."),
    (["train", "notes.txt"], "notes.txt is a file, but no checkpoint (.pth); a model's name or a checkpoint belongs here."),
])  # fmt: skip
def test_what_is_misplaced_is_named_with_the_order(command, folder, words, message):
    order = {"tokenize": "TOKENIZER OUTPUT [IMAGES ...]", "generation": "TOKENIZER PRIOR N_IMAGES OUTPUT_PATH",
             "compress": "TOKENIZER AUTOREGRESSIVE [IMAGES_AND_OUTPUT ...]"}  # fmt: skip
    usage = f"python -m homework.{words[0]} {order.get(words[0], 'MODEL')}"
    assert sentence(command(*words)) == f"{message} The order is: {usage}."


def test_no_control_character_of_a_name_reaches_the_terminal(command, folder):
    done = command("tokenize", "t.pth", "o\x1b[31m.pth", ROOT / "data/sample/temple.jpg")
    assert done.returncode == 0 and "o\\x1b[31m.pth: 1 grid" in done.stdout and "\x1b" not in done.stdout


@pytest.mark.parametrize("words", [["tokenize", "t.pth", "out.pth", "gone"], ["som", "fit", "gone", "out.pth"],
                                   ["sample", "p.pth", 1, "out"], ["generation", "cascade", "[]"],
                                   ["receptive_field"]])  # fmt: skip
def test_an_output_that_cannot_be_written_is_reported_before_the_work(command, folder, monkeypatch, words):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "is not a folder in which files can be made" in sentence(command(*words))


def test_a_command_of_several_that_does_not_exist_gets_the_nearest(command):
    see = "See python -m homework.som --help."
    assert sentence(command("som", "prun")) == f"There is no command prun; did you mean prune? {see}"
    assert sentence(command("som")) == f"Name a command: fit, prune. {see}"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("cwd, file", [(".", "homework/{}.py"), ("homework", "{}.py")])
def test_a_command_called_by_its_file_says_how_to_call_it(name, cwd, file):
    done = run(file.format(name), cwd=ROOT / cwd, fresh=True, PYTHONPATH="")
    remedy = f"in the folder that has homework/, call python -m homework.{name}."
    assert sentence(done) == f"{name}.py is part of a package: {remedy}" and not done.stdout
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_stops_nothing(tmp_path):
    """As in ``2> >(head -c 1)``: bars and messages have nowhere to go, and threads that move a bar continue."""
    for name in "BSQPatchAutoEncoder", "AutoregressiveModel":
        checkpoint.save(build(name), tmp_path / f"{name}.pth")
    (tmp_path / "one").mkdir()
    for name in "ab":
        Image.new("RGB", (64, 40), "red").save(tmp_path / "one" / f"{name}.png")
    words = "compress", "BSQPatchAutoEncoder.pth", "AutoregressiveModel.pth", "one", "a.hwa", "--device", "cpu"
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
    command = [sys.executable, "-m", "homework.compress", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=write, timeout=120)
    os.close(write)
    assert done.returncode == 0 and b"2 images" in done.stdout and (tmp_path / "a.hwa").is_file()
