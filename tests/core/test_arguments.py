"""Words of a command line to arguments: text stays as it was typed, numbers are decimal, booleans take no value."""

import functools
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Optional
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from homework.__main__ import COMMANDS
from homework.core import arguments, checks
from homework.core.arguments import BadArguments, bind


def show(source: str, target: str | Path, *images: str, n: int = 1, rate: float | None = None,
         ink: float | str | None = None, side: int | str = 1, title: str | None = None, loud: bool = False,
         bright: bool = True, shape: Optional[int] = None, parts: list[dict] | None = None) -> dict:  # noqa: UP045  # fmt: skip
    return locals()


def fit(model: str, seed: int = 0, config: str | None = None, **options) -> dict:
    return locals()


@functools.cache
def functions() -> dict[str, Callable]:
    """Every function that a command line calls: "train", "compress info"."""
    found = {}
    for name in COMMANDS:
        for words in [name], [name, "cascade"]:
            with mock.patch("homework.core.cli.main") as main, mock.patch("sys.argv", words):
                runpy.run_module(f"homework.{name}", run_name="__main__")
            command = main.call_args.args[1]
            parts = {f"{name} {part}": f for part, f in command.items()} if isinstance(command, dict) else {name: command}
            found |= parts
    return found


def get(url: str = "here", dir: str = "data", *, replace: bool = False) -> dict:
    return locals()


def call(function, *words: str) -> dict:
    """What the function gets."""
    return bind(function, list(words))()


def refused(function, *words: str) -> str:
    with pytest.raises(BadArguments) as error:
        bind(function, list(words))
    return str(error.value)


# what argv can hold: anything but NUL, bytes that are not UTF-8 included
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=()))
odd = "shots#2", "0x10", "2026_11", "a,b", "'q'", '"', "None", "True", "1e3", "-", "a b", "", "[1]"
paths = texts | st.sampled_from(odd)
words = paths.filter(lambda text: not arguments.OPTION.match(text))


# --- text -----------------------------------------------------------------------------------------------------------------


@given(words, words, st.lists(words), words, paths)
def test_text_is_what_was_typed(source, target, images, title, ink):
    got = call(show, source, target, *images, "--title", title, f"--side={title}")
    assert [got["source"], got["target"], got["title"], *got["images"]] == [source, target, title, *images]
    assert got["side"] == (int(title) if re.fullmatch("[+-]?[0-9]+", title) else title)
    assert call(show, f"--source={source}", "--target", target, f"--title={ink}")["title"] == ink


@given(paths, paths, st.lists(paths))
@example("--help", "-n", ["--title", "--"])
def test_after_two_hyphens_no_word_is_an_option(source, target, images):
    got = call(show, "--loud", "--", source, target, *images)
    assert [got["source"], got["target"], *got["images"]] == [source, target, *images] and got["loud"] is True


@given(st.dictionaries(st.sampled_from(["source", "target", "title"]), paths, min_size=1))
def test_text_from_a_file_is_what_it_holds(tmp_path_factory, options):
    file = tmp_path_factory.getbasetemp() / "options.json"
    file.write_text(json.dumps(options))
    got = call(show, "--config", str(file), *(f"--{name}=given" for name in ("source", "target") if name not in options))
    assert {name: got[name] for name in options} == options


def test_every_text_parameter_of_every_command_is_taken_as_it_is():
    assert {"train", "compress info", "generation", "generation cascade", "data import"} <= functions().keys()
    for function in functions().values():
        table = arguments.parameters(function)
        given = {name: "0x10" for name, p in table.items() if arguments.words_of(p) & {"str", "Path"} and name != "config"}
        if "model" in given:
            given["model"] = "0x10.pth"
        names, rest = arguments.positions(function)
        given |= {name: "1" for name in names if name not in given}
        given.pop(rest, None)
        made = bind(function, [*(f"--{name}={text}" for name, text in given.items()), *["2026_11"] * bool(rest)])
        got = dict(zip(names, made.args, strict=False)) | made.keywords
        assert {name: str(got[name]) for name in given} == given
        assert made.args[len(names) if rest else 0 :] == (("2026_11",) if rest else ())


def test_what_goes_by_position_goes_by_name_too(tmp_path):
    got = call(show, "--target", "b", "a", "c", "--images", "#d")
    assert (got["source"], got["target"], got["images"]) == ("a", "b", ("#d", "c"))
    (tmp_path / "c.json").write_text('{"images": ["x", 7], "source": 2026, "title": null}')
    got = call(show, f"--config={tmp_path}/c.json", "--target=b")
    assert (got["source"], got["target"], got["images"], got["title"]) == ("2026", "b", ("x", "7"), None)


def test_what_has_a_default_may_go_by_position_as_in_python():
    assert call(get, "there")["url"] == "there" and call(get, "--dir", "d") == {"url": "here", "dir": "d", "replace": False}
    assert call(get, "d", "--url=u") == {"url": "u", "dir": "d", "replace": False}
    assert refused(get, "a", "b", "c") == "There is no place for 'c' after [URL] [DIR]; all else goes by name."


# --- numbers and booleans -------------------------------------------------------------------------------------------------


@given(st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers(n, rate):
    got = call(show, "a", "b", "--n", str(n), f"--rate={rate}", "--shape", f"{n:+d}")
    assert got["n"] == n == got["shape"] and type(got["n"]) is int and got["rate"] == rate
    if abs(n) < 2**63:
        assert type(call(show, "a", "b", "--rate", str(n))["rate"]) is int  # as configurations of models have always had it


def test_forms_of_numbers():
    for text, value in {"1e3": 1000.0, ".5": 0.5, "5.": 5.0, "-1E-3": -0.001, "007": 7, "None": None}.items():
        assert call(show, "a", "b", f"--rate={text}")["rate"] == value


def shown(text: str) -> str:
    return text if re.fullmatch(r"[0-9.e]*[0-9]", text) else repr(text)


@pytest.mark.parametrize("text", ["0x10", "1_000", "1e3", "five", "", "1.0", "[1]", "True", "٣", "None", "1" * 1000, "1 "])
def test_what_is_not_an_integer_is_refused(text):
    assert refused(show, "a", "b", f"--n={text}") == f"--n is {shown(text)}, but must be an integer."


@pytest.mark.parametrize("text", ["0x10", "1_0.0", "nan", "inf", "fast", "", "1,5", "1e"])
def test_what_is_not_a_number_is_refused(text):
    assert refused(show, "a", "b", "--rate", text) == f"--rate is {shown(text)}, but must be a number."


def test_several_kinds():
    assert call(show, "a", "b", "--ink", "0.5", "--side", "3x4")["ink"] == 0.5
    got = call(show, "a", "b", "--ink", "sample", "--side", "3", "--parts", "[{'a': 1}]")
    assert (got["ink"], got["side"], got["parts"]) == ("sample", 3, [{"a": 1}])


@given(st.integers(2**63, 10**998))
def test_integers_of_any_size_are_numbers_or_refused(n):
    """Where a float is meant, PyTorch takes no integer of more than 63 bits."""
    rate = call(show, "a", "b", "--rate", str(n))["rate"]
    assert rate == n if n > checks.LARGEST else (rate == float(n) and type(rate) is float)
    with pytest.raises(ValueError, match="^--n is [0-9]+, but must be below 2\\^63.$"):
        checks.integer(1, **{"--n": n})


def test_a_boolean_takes_no_value():
    got = call(show, "a", "--loud", "b", "--nobright", "c")
    assert (got["target"], got["images"], got["loud"], got["bright"]) == ("b", ("c",), True, False)
    for words, loud in (["--loud"], True), (["--no-loud"], False), (["--no_loud"], False), (["--loud=false"], False):
        assert call(show, "a", "b", *words)["loud"] is loud
    assert call(show, "a", "b", "--loud", "--noloud")["loud"] is False  # the last word counts
    assert refused(show, "a", "b", "--loud=3") == "--loud takes no value, but got 3."
    assert "--augment takes no value" in refused(functions()["train"], "PixelCNN", "--augment", "False")


# --- what does not fit ----------------------------------------------------------------------------------------------------


def test_what_is_missing_or_too_much_is_named():
    assert refused(show, "a") == "TARGET is missing; give SOURCE TARGET [IMAGES ...]."
    for more in [], ["--loud"]:
        assert refused(show, "a", "b", "--title", *more) == "--title needs a value after it."
    train = functions()["train"]
    message = "There is no place for 'data/train' after MODEL; all else goes by name."
    assert refused(train, "PixelCNN", "data/train") == message
    assert "PixelCNN" in refused(train)  # the models


def test_an_unknown_option_gets_the_nearest_one():
    assert refused(show, "a", "b", "--titel", "x") == "There is no option --titel; did you mean --title?"
    assert refused(show, "a", "b", "--xyz", "x") == "There is no option --xyz."
    train = functions()["train"]
    assert "did you mean --epochs?" in refused(train, "PixelCNN", "--epoch", "3")
    assert "did you mean --c_hidden?" in refused(train, "PixelCNN", "--c-hiden", "3")


def test_a_file_that_is_named_like_an_option_is_recognized(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "-x.jpg", "--title", "--no_such":
        (tmp_path / name).touch()
    for name in "-x.jpg", "--no_such":
        assert refused(show, name, "b") == f"{name} is read as an option; to name the file, write ./{name}."
    assert call(show, "a", "b", "--title", "c")["title"] == "c"
    assert call(show, "./-x.jpg", "b")["source"] == "./-x.jpg" and call(show, "--", "-x.jpg", "b")["source"] == "-x.jpg"


def test_options_of_a_model_have_the_types_of_its_constructor():
    words = "--position", "2", "--dropout", "1e-1", "--recompute", "--seed", "3"
    assert call(fit, "AutoregressiveModel", *words)["options"] == {"position": "2", "dropout": 0.1, "recompute": True}
    assert refused(fit, "AutoregressiveModel", "--window", "0x10") == "--window is '0x10', but must be an integer."
    assert call(fit, "x.pth", "--window", "5", "--recompute")["options"] == {"window": 5, "recompute": True}  # not known yet
    assert call(fit, "PixelCN", "--window", "5")["options"] == {"window": 5}  # as the function itself will say


# --- files of options -----------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    def write(options: object) -> str:
        (tmp_path / "c.json").write_text(json.dumps(options))
        return str(tmp_path / "c.json")

    return write


def test_a_file_gives_what_the_words_do_not(file):
    path = file({"model": "PixelCNN", "seed": 5, "c_hidden": 8, "num_res_block": 2})
    got = call(fit, "--config", path, "--seed", "0")
    assert got == {"model": "PixelCNN", "seed": 0, "config": None, "options": {"c_hidden": 8, "num_res_block": 2}}
    assert call(fit, "AutoregressiveModel", f"--config={file({'seed': 5, 'dropout': 0})}")["options"] == {"dropout": 0}


@pytest.mark.parametrize("options, message", [
    ({"seed": "x"}, "--seed is 'x', but must be an integer."), ({"seed": None}, "--seed is None, but must be an integer."),
    ({"seed": [1]}, "--seed is [1], but must be an integer."), ({"seed": 1.5}, "--seed is 1.5, but must be an integer."),
    ({"seeds": 1}, "There is no option --seeds; did you mean --seed?"),
    ({"model": None}, "MODEL is None, but must be text."),
])  # fmt: skip
def test_values_of_a_file_are_checked_like_words(file, options, message):
    assert refused(fit, *["PixelCNN"] * ("model" not in options), "--config", file(options)) == message


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"seed": 1' + "0" * 5000 + "}", "\ufeff{}"])
def test_a_file_that_is_not_json_is_named(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match="c.json is not JSON"):
        call(fit, "PixelCNN", "--config", str(tmp_path / "c.json"))


def test_python_calls_name_a_file_too(file):
    seen = []

    @arguments.configured
    def run(model: str, seed: int = 0, loud: bool = False, config: str | None = None, **options) -> None:
        seen.append((model, seed, loud, config, options))

    run("PixelCNN", seed=0, config=file({"seed": 5, "loud": True, "c_hidden": 8}))
    assert seen == [("PixelCNN", 0, True, {"model": "PixelCNN", "seed": 0, "loud": True, "c_hidden": 8}, {"c_hidden": 8})]
    run("PixelCNN")
    bind(run, ["PixelCNN", "--seed", "0"])()
    assert [given for *_, given, _ in seen[1:]] == [{"model": "PixelCNN"}, {"model": "PixelCNN", "seed": 0}]
    with pytest.raises(ValueError, match="--seed is 'x'"):
        run("PixelCNN", config=file({"seed": "x"}))
    with pytest.raises(FileNotFoundError):
        run("PixelCNN", config="none.json")
