"""The tab Tokens, laid out."""

import gradio as gr

from homework.bsq import BSQPatchAutoEncoder
from homework.studio_tabs import tokens
from homework.studio_tabs.components import NO_IMAGE, PIXELS, command_box, filled, picker, said
from homework.studio_tabs.models import Models, Source, picture_file
from homework.studio_tabs.tokens import View
from homework.tokenizers.som import SOM

FLIPS = "The code with one of its bits flipped, from the highest; click one to flip it:"
HINT = "The most probable tokens there, given those before; click one to put it in:"


def build(models: Models, tab: gr.Tab) -> None:
    """Lays out ``tab``, which is open, and is filled when it is first looked at."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            source = picker(models)
            reset = gr.Button("Back to the encoder's tokens", size="sm")
        with gr.Column(scale=3, min_width=320):
            picture = gr.Image(label="Click a token, or write its row and column below", interactive=False,
                               elem_id="grid", buttons=[])  # fmt: skip
            with gr.Row():
                fields = row, column, token = [gr.Number(None, label=label, precision=0, min_width=90)
                                               for label in ("Row", "Column", "Token")]  # fmt: skip
            balance = gr.Markdown()
            about = gr.Markdown(elem_id="token")
            others = gr.Gallery(label="The most probable tokens there", columns=5, allow_preview=False, interactive=False,
                                buttons=[], show_label=False, elem_id="alternatives",
                                elem_classes=["thumbnails", "patches"])  # fmt: skip
            with gr.Column(visible=isinstance(models.tokenizer, BSQPatchAutoEncoder)):
                gr.Markdown(FLIPS)
                flips = gr.Gallery(label="One bit flipped", columns=5, allow_preview=False, interactive=False, buttons=[],
                                   show_label=False, elem_id="flips", elem_classes=["thumbnails", "patches"])  # fmt: skip
            lattice = gr.Image(label="All units on their lattice; click one to put it in", interactive=False, buttons=[],
                               visible=isinstance(models.tokenizer, SOM), elem_id="lattice",
                               elem_classes=PIXELS)  # fmt: skip
            box = command_box("", "docs/tokenizers.md")
    view, known = gr.State(None), gr.State([])

    def show(view: View):
        found = tokens.alternatives(models, view)
        gallery = [(picture_file(models, one.picture), f"{one.token}: {100 * one.probability:.2g}\N{NO-BREAK SPACE}%")
                   for one in found]  # fmt: skip
        text = f"{tokens.describe(models, view)}. {HINT}"
        drawn = picture_file(models, tokens.draw(models, view))
        return (view, [one.token for one in found], drawn, tokens.balance(models, view), text,
                gr.Gallery(gallery, selected_index=None), *view.position, int(view.grid[view.position]))  # fmt: skip

    def begin(source: Source | None):
        if source is None:
            return *(gr.skip() for _ in range(3)), NO_IMAGE, *(gr.skip() for _ in range(6))
        return *show(tokens.start(models, source)), tokens.command(models, source)

    def visit(source: Source | None, view: View | None):
        return begin(source) if view is None else [gr.skip()] * (len(outputs) + 1)

    def look(view: View, event: gr.SelectData):
        return show(tokens.at_pixel(models, view, *event.index))

    def choose(view: View, known: list[int], event: gr.SelectData):
        return show(tokens.replace(view, known[event.index]))

    def flip(view: View, event: gr.SelectData):
        return show(tokens.flip(models, view, event.index))

    def move(view: View, row: float, column: float):
        *shown, token = show(tokens.at_position(view, int(row), int(column)))
        return [*shown[:-2], gr.skip(), gr.skip(), token]  # what is being written stays

    def put(view: View, token: float):
        return [*show(tokens.put(models, view, int(token)))[:-3], *[gr.skip()] * 3]

    def unit(view: View, event: gr.SelectData):
        return show(tokens.replace_by_unit(models, view, *event.index))

    def more(view: View | None):
        """What takes longer, and is shown afterwards."""
        if view is None:
            return gr.skip(), gr.skip()
        found, units = tokens.flips(models, view), tokens.draw_lattice(models, view)
        gallery = [(picture_file(models, one.picture), f"bit {one.bit}: {one.bits:+.1f} bits, {one.psnr:+.2f} dB")
                   for one in found]  # fmt: skip
        drawn = None if units is None else picture_file(models, units)
        return gr.Gallery(gallery, selected_index=None), drawn

    outputs = [view, known, picture, balance, about, others, *fields]
    gr.on([source.change, reset.click], said(begin), source, [*outputs, box], show_progress="hidden")
    tab.select(said(visit), [source, view], [*outputs, box], show_progress="hidden")
    picture.select(said(look), view, outputs, show_progress="hidden")
    gr.on([row.input, column.input], said(filled(move)), [view, row, column], outputs, show_progress="hidden",
          trigger_mode="always_last")  # fmt: skip
    token.input(said(filled(put)), [view, token], outputs, show_progress="hidden", trigger_mode="always_last")
    others.select(said(choose), [view, known], outputs, show_progress="hidden")
    flips.select(said(flip), view, outputs, show_progress="hidden")
    lattice.select(said(unit), view, outputs, show_progress="hidden")
    view.change(said(more), view, [flips, lattice], show_progress="hidden", trigger_mode="always_last")
