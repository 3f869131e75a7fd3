"""The words of a command line as the arguments of a function: each has the type that the parameter's annotation names, and
text stays as it was typed."""

import contextlib
import inspect
import json
import os
import re
from collections import deque
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import fire

from homework.core import checks, registry

KINDS = {"int": "integer", "float": "number", "str": "text", "Path": "text"}  # types, as a person calls them
SIMPLE = {*KINDS, "bool", "None", "NoneType", "pathlib", "_local", "typing", "Optional", "Union"}  # words of annotations
INTEGER = re.compile(r"[+-]?[0-9]{1,999}")
FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
OPTION = re.compile(r"--|-[a-zA-Z]")  # how an option begins; "-" alone and negative numbers are values
CONFIG = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="str | None")
Table = dict[str, inspect.Parameter]  # what a function takes, by name


class BadArguments(ValueError):
    """Words that ask for no call, which the help would have prevented."""


def bind(function: Callable, words: list[str]) -> Callable[[], None]:
    """The call of ``function`` that the ``words`` ask for; arguments go by position or by name as in Python. ``--config
    FILE`` stands for the options in that JSON object, and those among the words win. ValueError if there is no such call,
    OSError if there is no such file."""
    texts = read(function, words)
    options, table = take_config(function, texts)
    given = {name: convert(name, value, table) for name, value in (options | texts).items()}
    names, rest = positions(function)
    if missing := [name.upper() for name in names if name not in given and table[name].default is inspect.Parameter.empty]:
        models = f" Models: {', '.join(registry.MODELS)}." if missing == ["MODEL"] else ""
        raise BadArguments(f"{missing[0]} is missing; give {' '.join(order(function))}.{models}")
    before = [given.pop(name) for name in names if rest]  # which have no defaults
    return partial(function, *before, *given.pop(rest, ()), **given)


def configured(function: Callable[..., None]) -> Callable[..., None]:
    """Lets Python calls name such a file as ``config`` too. The function itself gets as ``config`` all that was given, by
    name: in it, an argument counts that equals its default."""

    @wraps(function)
    def call(*args: Any, **given: Any) -> None:
        given = inspect.signature(function).bind_partial(*args).arguments | given
        options, table = take_config(function, given)
        given = {name: convert(name, value, table) for name, value in options.items()} | given
        function(**given, config=given)

    return call


def parameters(function: Callable, model: str | None = None) -> Table:
    """What ``function`` takes, by name; in place of any **options, those of the constructor of the ``model``, if that is the
    name of one."""
    table = dict(inspect.signature(function).parameters)
    named = {name: parameter for name, parameter in table.items() if parameter.kind is not parameter.VAR_KEYWORD}
    if model and len(named) < len(table):
        with contextlib.suppress(ValueError):  # of a checkpoint, or of what is not a model, as the function itself will say
            table = dict(inspect.signature(registry.model_class(str(model))).parameters) | named
    return table | {"config": table.get("config", CONFIG)}


def positions(function: Callable) -> tuple[list[str], str]:
    """The parameters that go by position, and the one for all further words, or ""."""
    table = inspect.signature(function).parameters.values()
    rest = [parameter.name for parameter in table if parameter.kind is parameter.VAR_POSITIONAL]
    return [p.name for p in table if p.kind is p.POSITIONAL_OR_KEYWORD], rest[0] if rest else ""


def order(function: Callable) -> list[str]:
    """The same as a person writes them: TOKENIZER OUTPUT [IMAGES ...]."""
    table, (names, rest) = parameters(function), positions(function)
    needed = [name.upper() if table[name].default is inspect.Parameter.empty else f"[{name.upper()}]" for name in names]
    return needed + [f"[{rest.upper()} ...]"] * bool(rest)


def read(function: Callable, words: list[str]) -> dict[str, Any]:
    """The texts that the words give, by the name of the parameter. An option's value is the next word, or follows a "=";
    a boolean takes none: --augment, --noaugment. After "--", no word is an option."""
    texts: dict[str, Any] = {}
    loose: list[str] = []  # words that go by position
    switch: dict[int, str] = {}  # the boolean before such a word, which may have been meant as its value
    left = deque(words)
    while left:
        table = parameters(function, texts.get("model", *loose[:1]))
        word = left.popleft()
        if word == "--":
            loose += left
            break
        if not OPTION.match(word):
            loose.append(word)
            continue
        key, equals, text = word.lstrip("-").partition("=")
        name = key.replace("-", "_")
        positive = name if name in table else name.removeprefix("no").lstrip("_")
        if not {name, positive} & {*table} and os.path.lexists(word):
            raise BadArguments(f"{word} is read as an option; to name the file, write ./{word}.")
        if equals:
            pass
        elif is_switch(positive, table):
            name, text = positive, str(name == positive)
            switch[len(loose)] = key
        elif left and not OPTION.match(left[0]):
            text = left.popleft()
        elif name in table:
            raise BadArguments(f"--{key} needs a value after it.")
        else:  # an option of a checkpoint's model may be a boolean
            text = "True"
        texts[name] = text
    names, rest = positions(function)
    places = [name for name in names if name not in texts]
    texts |= dict(zip(places, loose, strict=False))
    extra = [texts[name] for name in [rest] if name in texts] + loose[len(places) :]
    if extra and not rest:
        hint = f"--{switch[len(places)]} takes no value" if len(places) in switch else "all else goes by name"
        raise BadArguments(f"There is no place for {extra[0]!r} after {' '.join(order(function)) or 'the command'}; {hint}.")
    return texts | ({rest: extra} if extra else {})


def is_switch(name: str, table: Table) -> bool:
    return name in table and words_of(table[name]) & SIMPLE - {"None"} == {"bool"}


def words_of(parameter: inspect.Parameter) -> set[str]:
    """{"int", "None"} of "int | None" or Optional[int]."""
    return set(re.findall(r"\w+", inspect.formatannotation(parameter.annotation)))


def kind(parameter: inspect.Parameter) -> str:
    """The type of a parameter, as a person calls it: "integer", "number or text"; "value" if it is not as simple."""
    words = words_of(parameter)
    return " or ".join(dict.fromkeys(KINDS[word] for word in KINDS if word in words and words <= SIMPLE)) or "value"


def take_config(function: Callable, given: dict[str, Any]) -> tuple[dict[str, Any], Table]:
    """Takes ``config`` out of what is ``given``; returns the options in that file that are not given themselves, and what
    ``function`` takes with the model that all of them name. ValueError if the file is not one JSON object."""
    path = given.pop("config", None)
    options = {} if path is None else read_json(path)
    options = {name: value for name, value in options.items() if name not in {*given, "config"}}
    return options, parameters(function, given.get("model", options.get("model")))


def read_json(path: str | Path) -> dict[str, Any]:
    """The options in a file. ValueError if it is not one JSON object, OSError if there is no such file."""
    try:
        options = json.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold one JSON object, options by name.")
    return options


def convert(name: str, value: Any, table: Table) -> Any:
    """A text of the command line, or a value of a JSON file, as the parameter ``name`` takes it. ValueError if it takes no
    such value, or does not exist."""
    if name not in table and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in table.values()):
        known = [f"--{option}" for option in table]
        raise BadArguments(f"There is no option --{name}{checks.did_you_mean(f'--{name}', known)}")
    parameter = table.get(name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY))
    if parameter.kind is parameter.VAR_POSITIONAL:
        return [str(item) for item in (value if isinstance(value, list) else [value])]
    try:
        return typed(value, words_of(parameter))
    except ValueError:
        label = name.upper() if parameter.default is parameter.empty else f"--{name}"
        if is_switch(name, table):
            raise BadArguments(f"{label} takes no value, but got {value}.") from None
        shown, allowed = value if FLOAT.fullmatch(str(value)) else repr(value), kind(parameter)
        allowed = allowed if allowed == "text" else checks.article(allowed)
        raise BadArguments(f"{label} is {shown}, but must be {allowed}.") from None


def typed(value: Any, words: set[str]) -> Any:
    """A ``value`` as the type that the ``words`` of an annotation name; ValueError if none fits. Numbers are decimal."""
    if not words <= SIMPLE:
        return fire.parser.DefaultParseValue(value) if isinstance(value, str) else value
    text = str(value)
    if text == "None" and "None" in words and (value is None or not words & {"str", "Path"}):
        return None
    if value is None or isinstance(value, list | dict):  # of a JSON file
        raise ValueError
    if words & {"int", "float"} and INTEGER.fullmatch(text):
        number = int(text)
        too_long = "int" not in words and 2**63 <= abs(number) <= checks.LARGEST  # for PyTorch
        return float(text) if too_long else number
    if "float" in words and FLOAT.fullmatch(text):
        return float(text)
    if "bool" in words and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if words & {"str", "Path"}:
        return text
    raise ValueError
