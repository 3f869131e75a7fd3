"""What several tabs are made of: a choice of an image, the settings of sampling, the command line, errors as sentences."""

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from homework.core import cli, devices
from homework.core.files import printable
from homework.datasets.image_files import read_image
from homework.studio_tabs.models import Models, read_source
from homework.studio_tabs.sampling import Settings

NO_IMAGE = "There is no image yet; drop one."
PIXELS = "pixels"  # the class of pictures whose pixels the page shows as squares


def said(function: Callable) -> Callable:
    """The function or generator, with a ValueError or OSError as a sentence on the page."""

    def sentence(error: Exception) -> gr.Error:
        if isinstance(error, MemoryError | RuntimeError):
            if not devices.is_out_of_memory(error):
                raise error
            error = ValueError("The memory is too small for this; take a smaller image, or fewer of them.")
        return gr.Error(printable(cli.sentence(error)), print_exception=False)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            raise sentence(error) from error

    @functools.wraps(function)
    def generate(*arguments: Any) -> Iterator[Any]:
        try:
            yield from function(*arguments)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            raise sentence(error) from error

    return generate if inspect.isgeneratorfunction(function) else call


def filled(function: Callable) -> Callable:
    """The function, which is called when none of its arguments is None, as that of a field is which is being written."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return gr.skip() if any(argument is None for argument in arguments) else function(*arguments)

    return call


def picker(models: Models) -> gr.State:
    """Samples to click at, and a place to drop an image; the state holds the :class:`Source` that was taken, at first the
    first sample."""
    source = gr.State(read_source(models.samples[0]) if models.samples else None)
    if models.samples:
        thumbnails = [read_image(path, (60, 90)) for path in models.samples]
        gallery = gr.Gallery(thumbnails, label="Samples", columns=6, allow_preview=False, interactive=False,
                             object_fit="cover", buttons=[], show_label=False, elem_classes="thumbnails")  # fmt: skip

        def take(event: gr.SelectData):
            return read_source(models.samples[event.index])

        gallery.select(said(take), None, source, show_progress="hidden")
    file = gr.File(label="Or an image of your own, of any size and format", type="filepath", height=130)
    file.upload(said(read_source), file, source, show_progress="hidden")
    return source


def sampling_controls() -> list[gr.components.Component]:
    """Seed, temperature, top-k and top-p: what :func:`settings` takes."""
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, min_width=140)
        top_k = gr.Number(0, label="Top-k (0: all)", precision=0, min_width=140)
    with gr.Row():
        temperature = gr.Slider(0, 2, 1, step=0.05, label="Temperature", min_width=200)
        top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", min_width=200)
    return [seed, temperature, top_k, top_p]


def settings(seed: float | None, temperature: float, top_k: float | None, top_p: float) -> Settings:
    """From what a browser sends, for which 1 and 1.0 are the same, and an empty field is None."""
    return Settings(int(seed or 0), float(temperature), int(top_k) if top_k else None, None if top_p == 1 else float(top_p))


def command_box(text: str, docs: str) -> gr.Code:
    """The command line that does the same, and where the documents explain it."""
    box = gr.Code(text, language="shell", label="The same as a command", interactive=False, wrap_lines=True, lines=1,
                  show_line_numbers=False)  # fmt: skip
    gr.Markdown(f"What this is, and all options: {docs_link(docs)}")
    return box


def docs_link(path: str) -> str:
    """In Markdown: to a page of the documents, if they are in the folder in which the studio was started."""
    return f"[{path}](/gradio_api/file={path})" if Path(path).is_file() else f"`{path}`"
