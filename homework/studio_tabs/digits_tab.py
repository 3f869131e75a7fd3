"""The tab Digits, laid out."""

import gradio as gr
import torch

from homework.core import checks
from homework.studio_tabs import digits, sampling
from homework.studio_tabs.components import PIXELS, command_box, said, sampling_controls, settings
from homework.studio_tabs.models import Models, picture_file

HINT = ("Draw here with the mouse or a finger. By keyboard: Tab to get here, the arrow keys to move, Space to draw, "
        "Backspace to erase. The grey rows are for PixelCNN to fill in.")  # fmt: skip
PAD = f'<canvas width="336" height="336" tabindex="0" role="application" aria-label="{HINT}"></canvas>'
# the value is a character for each pixel; ``rows`` of them can be drawn in; a stroke of the pen is less than 3 pixels wide
DRAWING = """
const side = 28, cell = 12, canvas = element.querySelector("canvas"), page = canvas.getContext("2d");
let ink = [...props.value], cursor = [7, 14], last = null;
function show() {
    for (let i = 0; i < side * side; i++) {
        const [row, column] = [Math.floor(i / side), i % side], kept = row < props.rows;
        page.fillStyle = ink[i] == "1" ? (kept ? "#fff" : "#888") : (kept ? "#000" : "#444");
        page.fillRect(column * cell, row * cell, cell, cell);
    }
    page.strokeStyle = "#ffd200";
    page.lineWidth = 2;
    if (document.activeElement === canvas) page.strokeRect(cursor[1] * cell, cursor[0] * cell, cell, cell);
}
function dot(y, x, what) {
    for (let i = 0; i < side * side; i++)
        if ((Math.floor(i / side) + 0.5 - y) ** 2 + (i % side + 0.5 - x) ** 2 < 1.6) ink[i] = what;
}
function stroke(event) {
    const box = canvas.getBoundingClientRect();
    const to = [(event.clientY - box.top) / box.height * side, (event.clientX - box.left) / box.width * side];
    const from = last ?? to, n = 1 + Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1]));
    for (let k = 1; k <= n; k++) dot(...[0, 1].map(i => from[i] + (to[i] - from[i]) * k / n), "1");
    last = to;
    show();
}
function finish() { last = null; props.value = ink.join(""); show(); }
canvas.addEventListener("pointerdown", event => { canvas.setPointerCapture(event.pointerId); stroke(event); });
canvas.addEventListener("pointermove", event => { if (last) stroke(event); });
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { if (last) finish(); });
for (const name of ["focus", "blur"]) canvas.addEventListener(name, show);
canvas.addEventListener("keydown", event => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    const what = {" ": "1", Backspace: "0", Delete: "0"}[event.key];
    if (!step && !what) return;
    event.preventDefault();
    if (step) cursor = cursor.map((at, i) => Math.min(side - 1, Math.max(0, at + step[i])));
    if (what) dot(cursor[0] + 0.5, cursor[1] + 0.5, what);
    if (what) finish(); else show();
});
watch(["value", "rows"], () => { ink = [...props.value]; show(); });
show();
"""
# the pixel under the pointer is chosen as by the sliders of its row and column
FOLLOWING = """
document.addEventListener("pointermove", event => {
    const box = event.target.closest?.(".field")?.querySelector("img")?.getBoundingClientRect();
    if (!box) return;
    const size = Math.min(box.width, box.height);  // the square picture is in the middle of what may be wider
    const at = [event.clientY - box.top - box.height / 2, event.clientX - box.left - box.width / 2].map(x => x / size + 0.5);
    if (Math.min(...at) < 0 || Math.max(...at) >= 1) return;
    ["#field_row", "#field_column"].forEach((id, i) => {
        const slider = document.querySelector(`${id} input[type=range]`), value = Math.floor(side * at[i]);
        if (slider.value == value) return;
        slider.value = value;
        slider.dispatchEvent(new Event("input", {bubbles: true}));
    });
});
"""
BLANK = "0" * digits.SIDE**2


def build(models: Models, tab: gr.Tab) -> None:
    """Lays out ``tab``, which is open, and draws what is seen when it is looked at."""
    device = models.tokenizer.device
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            pad = gr.HTML(digits.to_pad(digits.example(2)), html_template=PAD, js_on_load=DRAWING + FOLLOWING,
                          rows=digits.ROWS, label=HINT, elem_id="pad")  # fmt: skip
            gr.Markdown(HINT)
            clear = gr.Button("Clear", size="sm")
            begin = gr.Dropdown(["", *map(str, range(10))], value="", label="Or begin with the digit")
            rows = gr.Slider(0, digits.SIDE, digits.ROWS, step=1, label=f"Rows to keep, of {digits.SIDE}")
            name = gr.Radio(list(digits.PRIORS), value=next(iter(digits.PRIORS)), label="Ended by")
            controls = sampling_controls()
            start = gr.Button("End it in eight ways", variant="primary")
        with gr.Column(scale=3, min_width=320):
            sheet = gr.Image(label="Eight endings", interactive=False, elem_classes=PIXELS, elem_id="endings",
                             buttons=["download", "fullscreen"])  # fmt: skip
            costs = gr.Markdown(elem_classes="costs")
            file = gr.DownloadButton("Download digit.png, the drawing", size="sm")
            box = command_box(digits.endings_command(name.value, digits.ROWS, sampling.Settings()), "docs/priors.md")
            gr.Markdown("### What a layer sees\nPoint at a pixel, or choose its row and column: which of the pixels before "
                        "it does its prediction depend on?")  # fmt: skip
            with gr.Row():
                maps = [gr.Image(label=label, interactive=False, elem_classes=[PIXELS, "field"], buttons=[], min_width=140)
                        for label in ("PixelCNN", "Gated PixelCNN")]  # fmt: skip
            about = gr.Markdown(elem_id="field")
            with gr.Row():
                row, column = (gr.Slider(0, digits.SIDE - 1, digits.SIDE // 2, step=1, label=label, min_width=200,
                                         elem_id=f"field_{label.lower()}") for label in ("Row", "Column"))  # fmt: skip
                depth = gr.Slider(1, digits.MOST_DEPTH, digits.DEPTH, step=1, label="Layers", min_width=200)
            field_box = command_box("", "docs/priors.md")

    def end(text: str, rows: float, name: str, *values: float):
        checks.choice(digits.PRIORS, **{"The prior": name})
        chosen, model = settings(*values), digits.prior(name, device)
        found = digits.endings(model, digits.read_pad(text), int(rows), chosen)
        return (picture_file(models, digits.sheet(found), "endings"), sampling.nats(model, found),
                digits.endings_command(name, int(rows), chosen))  # fmt: skip

    def look(text: str, row: float, column: float, depth: float):
        position, grid = (int(row), int(column)), digits.read_pad(text)
        plain, gated = digits.fields(position, int(depth))
        blind = gated & ~plain
        drawn = [picture_file(models, digits.draw_field(grid, seen, missed, position), "field")
                 for seen, missed in ((plain, blind), (gated, torch.zeros_like(blind)))]  # fmt: skip
        picture = picture_file(models, digits.from_shades(grid, 2), "digit")
        return (*drawn, digits.describe(plain, gated, position), digits.field_command(position, int(depth)), picture)

    def choose(event: gr.SelectData):
        return digits.at_pixel(*event.index)

    begin.input(lambda digit: digits.to_pad(digits.example(int(digit))) if digit else BLANK, begin, pad,
                show_progress="hidden")  # fmt: skip
    clear.click(lambda: (BLANK, ""), None, [pad, begin], show_progress="hidden")
    rows.change(lambda rows: gr.HTML(rows=rows), rows, pad, show_progress="hidden")
    start.click(said(end), [pad, rows, name, *controls], [sheet, costs, box], show_progress="minimal",
                show_progress_on=costs, trigger_mode="always_last")  # fmt: skip
    gr.on([tab.select, pad.change, row.change, column.change, depth.change], said(look), [pad, row, column, depth],
          [*maps, about, field_box, file], show_progress="hidden", trigger_mode="always_last")  # fmt: skip
    for picture in maps:
        picture.select(said(choose), None, [row, column], show_progress="hidden")
