"""The tab Compress, laid out."""

import tempfile
from pathlib import Path

import gradio as gr

from homework.codec import dial
from homework.studio_tabs import compression
from homework.studio_tabs.components import NO_IMAGE, PIXELS, command_box, picker, said
from homework.studio_tabs.compression import Comparison
from homework.studio_tabs.models import Models, Source, picture_file

NAMES = ("original", "ours", "WebP", "AVIF", "JPEG", "map of bits", "map of errors")
EFFORT = 2  # at first: an answer that takes less than a second, and finds most of what there is


def build(models: Models, page: gr.Blocks) -> None:
    """Lays out the tab in the block that is open. ``page`` fills it when it is loaded."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            source = picker(models)
            quality = gr.Slider(1, 100, dial.QUALITY, step=1, label="Quality", info="fewer bytes or less error",
                                elem_id="quality")  # fmt: skip
            effort = gr.Slider(0, 9, EFFORT, step=1, label="Effort", info="how long to look for better tokens")
            stop = gr.Button("Stop", size="sm")
        with gr.Column(scale=3, min_width=320):
            with gr.Row():
                left = gr.Dropdown(NAMES, value="original", label="Left", min_width=120)
                right = gr.Dropdown(NAMES, value="ours", label="Right", min_width=120)
            first = models.samples[:1] * 2 or None  # to be seen before anything has been computed
            wipe = gr.ImageSlider(first, show_label=False, elem_id="wipe", interactive=False, elem_classes=PIXELS,
                                  max_height=700, buttons=["fullscreen"])  # fmt: skip
            position = gr.Slider(0, 100, 50, step=1, label="Where the two meet, in percent", elem_id="meet")
            table = gr.Markdown(elem_id="table")
            file = gr.DownloadButton("Download image.hwi", interactive=False)
            box = command_box("", "docs/codec.md")
    with gr.Accordion("Look at a file that was downloaded here", open=False, elem_id="open"):
        with gr.Row():
            dropped = gr.File(label="Drop a .hwi file here", type="binary", height=130)
            with gr.Column(min_width=320):
                opened = gr.Image(label="Its picture", interactive=False, elem_classes=PIXELS, height=240)
                about = gr.Markdown()
    found, tried = gr.State(None), gr.State(None)

    def shown(comparison: Comparison | None, left: str, right: str) -> tuple | None:
        """Pictures that are not there yet are the original."""
        if comparison is None:
            return None
        original = comparison.pictures["original"]
        return tuple(picture_file(models, comparison.pictures.get(name, original)) for name in (left, right))

    def compress(source: Source | None, quality: float, effort: float, tried: tuple | None, left: str, right: str):
        """The search's rounds, then a file to download, then the other codecs one by one; ``tried`` keeps their files."""
        if source is None:
            yield *(gr.skip() for _ in range(3)), NO_IMAGE, gr.skip(), gr.skip()
            return
        command, download = compression.command(models, source, quality, int(effort)), gr.DownloadButton(interactive=False)
        if tried is None or tried[0] is not source.pixels:
            tried = source.pixels, {}

        def updates(found: Comparison) -> tuple:
            text = f"{compression.table(found)}\n\n{compression.remarks(models, found, int(effort))}"
            return found, tried, shown(found, left, right), text, command, download

        for found in compression.compress(models, source, quality, int(effort)):
            yield updates(found)
        path = Path(tempfile.mkdtemp(dir=models.folder), "image.hwi")
        path.write_bytes(found.file)
        download = gr.DownloadButton(f"Download image.hwi, {len(found.file):,} bytes", value=str(path), interactive=True)
        yield updates(found)
        for codec in compression.rivals():
            found = compression.add_codec(found, codec, tried[1].setdefault(codec.name, {}))
            yield *updates(found)[:-1], gr.skip()  # a click on the button must not meet its being drawn again

    def open_file(data: bytes):
        picture, text = compression.open_file(models, data)
        return picture_file(models, picture), text

    triggers = [page.load, source.change, quality.change, effort.change]
    begin = gr.on(triggers, lambda: None, queue=False, trigger_mode="multiple")  # the next run, when the last one has ended
    run = begin.then(said(compress), [source, quality, effort, tried, left, right], [found, tried, wipe, table, box, file],
                     trigger_mode="multiple", show_progress="minimal", show_progress_on=table)  # fmt: skip
    gr.on([*triggers[1:], stop.click], None, cancels=[run])
    gr.on([left.input, right.input], shown, [found, left, right], wipe, show_progress="hidden")
    position.input(None, position, wipe, js="at => ({__type__: 'update', slider_position: at})")
    emptied = dropped.upload(lambda: (None, ""), None, [opened, about])  # what is damaged has no picture
    emptied.then(said(open_file), dropped, [opened, about])
