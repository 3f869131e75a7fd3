"""The tabs Generate and Complete, laid out."""

import tempfile
from pathlib import Path

import gradio as gr

from homework.studio_tabs import sampling
from homework.studio_tabs.components import NO_IMAGE, PIXELS, command_box, picker, said, sampling_controls, settings
from homework.studio_tabs.models import PAIRS, Models, Source, picture_file, with_pair


def build_generate(models: Models) -> None:
    """Lays out the tab in the block that is open."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            pairs = dict.fromkeys([models.names, *PAIRS])
            with gr.Row():
                tokenizer, prior = (gr.Dropdown(list(dict.fromkeys(names)), value=names[0], label=label, min_width=200)
                                    for names, label in zip(zip(*pairs, strict=True), ("Tokenizer", "Prior"), strict=True))
            number = gr.Slider(1, sampling.MOST, 4, step=1, label="Images")
            candidates = gr.Slider(1, sampling.CANDIDATES, 1, step=1, label="Candidates for each image",
                                   info="kept: the one whose bits are nearest to the mean of the data")  # fmt: skip
            controls = sampling_controls()
            start, stop = _buttons("Generate")
        with gr.Column(scale=3, min_width=320):
            sheet = _sheet("generated")
            costs = gr.Markdown(elem_classes="costs")
            file = gr.DownloadButton("Download all images as PNG files, in a ZIP file", size="sm", interactive=False)
            box = command_box(sampling.generate_command(models, 4, sampling.Settings()), "docs/generation.md")

    def first_prior(tokenizer: str, prior: str) -> str:
        """As chosen, if it is over that tokenizer's grids."""
        known = [name for other, name in pairs if other == tokenizer]
        return prior if prior in known else known[0]

    def generate(tokenizer: str, prior: str, number: float, candidates: float, *values: float):
        chosen, n, taken = settings(*values), int(candidates), with_pair(models, (tokenizer, prior))
        command, none = sampling.generate_command(taken, int(number), chosen, n), gr.DownloadButton(interactive=False)
        for grown in sampling.grow(taken, int(number), chosen, None, n):
            shown = picture_file(models, sampling.sheet(grown), "sheet"), sampling.surprise(taken, grown), command
            yield *shown, none
        path = Path(tempfile.mkdtemp(dir=models.folder), "generated.zip")
        sampling.write_archive(grown, path)
        yield *shown, gr.DownloadButton(value=str(path), interactive=True)  # all again: a slow page may see but the last

    tokenizer.input(first_prior, [tokenizer, prior], prior, show_progress="hidden")
    run = start.click(said(generate), [tokenizer, prior, number, candidates, *controls], [sheet, costs, box, file],
                      show_progress="minimal", show_progress_on=costs)  # fmt: skip
    stop.click(None, cancels=[run])


def build_complete(models: Models) -> None:
    """Lays out the tab in the block that is open."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            source = picker(models)
            h = sampling.n_rows(models)
            rows = gr.Slider(0, h, h // 2, step=1, label=f"Rows of tokens to keep, of {h}")
            controls = sampling_controls()
            start, stop = _buttons("Complete")
        with gr.Column(scale=3, min_width=320):
            sheet = _sheet("completed")
            costs = gr.Markdown(elem_classes="costs")
            box = command_box("", "docs/generation.md")

    def complete(source: Source | None, rows: float, *values: float):
        if source is None:
            raise ValueError(NO_IMAGE)
        chosen = settings(*values)
        command = sampling.complete_command(models, source, int(rows), chosen)
        for picture, grown in sampling.complete(models, source, int(rows), chosen):
            yield picture_file(models, picture, "sheet"), sampling.surprise(models, grown), command

    run = start.click(said(complete), [source, rows, *controls], [sheet, costs, box], show_progress="minimal",
                      show_progress_on=costs)  # fmt: skip
    stop.click(None, cancels=[run])


def _buttons(name: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(name, variant="primary", min_width=120), gr.Button("Stop", min_width=120)


def _sheet(name: str) -> gr.Image:
    return gr.Image(label=f"{name.capitalize()} images", interactive=False, elem_classes=PIXELS,
                    elem_id=name, buttons=["download", "fullscreen"])  # fmt: skip
