"""The tab Coarse to fine, laid out."""

import gradio as gr

from homework.priors.cascade import Cascade
from homework.priors.pairs import SHIPPED, load_cascade
from homework.studio_tabs import coarse_to_fine
from homework.studio_tabs.coarse_to_fine import View
from homework.studio_tabs.components import NO_IMAGE, PIXELS, command_box, docs_link, filled, picker, said
from homework.studio_tabs.models import Models, Source, picture_file

ABOUT = """The pretrained cascade is named cascade.json. To open one of your own, train it by the commands in {docs}, and
name its JSON file, relative to the folder in which the studio was started."""
DOCS = "docs/coarse_to_fine.md"


def build(models: Models, tab: gr.Tab) -> None:
    """Lays out the tab in the block that is open."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            path = gr.Textbox(SHIPPED, label="The cascade's JSON file", max_lines=1)
            load = gr.Button("Open", variant="primary")
            about = gr.Markdown(ABOUT.format(docs=docs_link(DOCS)), elem_id="cascade")
            with gr.Column(visible=False) as controls:
                gr.Markdown("All grids of an image:")
                source = picker(models)
                level = gr.Radio([], label="Grid to look at, and to keep", elem_id="level")
                seed = gr.Number(0, label="Seed", precision=0)
                sample = gr.Button("Sample the finer grids", variant="primary")
        with gr.Column(scale=3, min_width=320, visible=False) as results:
            stages = gr.Gallery(label="From coarse to fine", columns=4, allow_preview=False, interactive=False, buttons=[],
                                show_label=False, elem_id="stages", elem_classes=["sheets", PIXELS])  # fmt: skip
            token = gr.Markdown(elem_id="code")
            gr.Markdown("Click a position of the grid, and then, below, the code to put there; or write them here.")
            with gr.Row():
                fields = row, column, code = [gr.Number(0, label=label, precision=0, min_width=90)
                                              for label in ("Row", "Column", "Code")]  # fmt: skip
            picture = gr.Image(show_label=False, interactive=False, elem_id="drawn", buttons=[])
            codes = gr.Image(show_label=False, interactive=False, elem_id="codes", buttons=[], elem_classes=PIXELS)
            box = command_box("", DOCS)
    opened, view = gr.State(None), gr.State(None)
    outputs, chosen = [view, stages, token, picture, box, *fields], [path, seed]

    def show(view: View, path: str, seed: float | None) -> tuple:
        pictures, names = coarse_to_fine.pictures(view), coarse_to_fine.names(view.cascade)
        drawn = coarse_to_fine.draw(view, pictures[view.level])
        gallery = [(picture_file(models, one), name) for one, name in zip(pictures, names, strict=False)]
        command = coarse_to_fine.command(view, path, int(seed or 0))
        at = *view.position, int(view.grids[view.level][view.position])
        return view, gallery, coarse_to_fine.describe(view), picture_file(models, drawn), command, *at

    def sheet(view: View) -> str:
        return picture_file(models, coarse_to_fine.sheet(view.cascade, view.level), "codes")

    def open_file(path: str, seed: float | None) -> tuple:
        cascade = load_cascade(path, models.tokenizer.device)
        found, names = coarse_to_fine.start(cascade), coarse_to_fine.names(cascade)
        text = f"{path}: grids of {', '.join(names)} for images of {'x'.join(map(str, cascade.image_size))}"
        radio = gr.Radio([(name, k) for k, name in enumerate(names[:-1])], value=0)
        return (cascade, text, gr.Column(visible=True), gr.Column(visible=True), radio,
                *show(found, path, seed), sheet(found))  # fmt: skip

    def open_first(cascade: Cascade | None, *chosen) -> tuple:
        return open_file(*chosen) if cascade is None else tuple(gr.skip() for _ in everything)

    def encode(cascade: Cascade | None, source: Source | None, level: int, *chosen) -> tuple:
        if source is None:
            raise ValueError(NO_IMAGE)
        if cascade is None:
            return tuple(gr.skip() for _ in outputs)
        return show(coarse_to_fine.at_level(coarse_to_fine.encoded(cascade, source), level), *chosen)

    def look(view: View, level: int, *chosen) -> tuple:
        found = coarse_to_fine.at_level(view, level)
        return *show(found, *chosen), sheet(found)

    def click(view: View, path: str, seed: float | None, event: gr.SelectData) -> tuple:
        return show(coarse_to_fine.at_pixel(view, *event.index), path, seed)

    def choose(view: View, path: str, seed: float | None, event: gr.SelectData) -> tuple:
        code = coarse_to_fine.code_at(view.cascade, view.level, *event.index)
        return show(view if code is None else coarse_to_fine.replace(view, code), path, seed)

    def move(view: View, row: float, column: float, *chosen) -> list:
        *shown, code = show(coarse_to_fine.at_position(view, int(row), int(column)), *chosen)
        return [*shown[:-2], gr.skip(), gr.skip(), code]  # what is being written stays

    def put(view: View, code: float, *chosen) -> list:
        return [*show(coarse_to_fine.replace(view, int(code)), *chosen)[:-3], *[gr.skip()] * 3]

    def refine(view: View, path: str, seed: float | None):
        for found in coarse_to_fine.refine(view, int(seed or 0)):
            yield show(found, path, seed)

    everything = [opened, about, controls, results, level, *outputs, codes]
    load.click(said(open_file), chosen, everything, show_progress_on=about)
    tab.select(said(open_first), [opened, *chosen], everything, show_progress_on=about)
    source.change(said(encode), [opened, source, level, *chosen], outputs, show_progress="hidden")
    level.input(said(look), [view, level, *chosen], [*outputs, codes], show_progress="hidden")
    picture.select(said(click), [view, *chosen], outputs, show_progress="hidden")
    codes.select(said(choose), [view, *chosen], outputs, show_progress="hidden")
    gr.on([row.input, column.input], said(filled(move)), [view, row, column, *chosen], outputs, show_progress="hidden",
          trigger_mode="always_last")  # fmt: skip
    code.input(said(filled(put)), [view, code, *chosen], outputs, show_progress="hidden", trigger_mode="always_last")
    sample.click(said(refine), [view, *chosen], outputs, show_progress_on=stages)
