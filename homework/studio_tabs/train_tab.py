"""The tab Train, laid out."""

import shlex
from pathlib import Path

import gradio as gr
import pandas as pd

from homework.core import registry
from homework.studio_tabs import runs
from homework.studio_tabs.components import PIXELS, command_box, said
from homework.studio_tabs.models import Models, picture_file
from homework.studio_tabs.runs import Options

EVERY = 1  # seconds between two looks at a training
MODEL = "BSQPatchAutoEncoder"
ABOUT = """The command runs in a process of its own and goes on when the page is closed or loaded again, which finds it here.
*Stop* saves it before it ends, as does the end of the studio; *Resume* continues it then, here or on the command line. It
writes `logs/`, `checkpoints/` and `studio/` in the folder in which the studio was started."""


def table(points: list[tuple[int, float, str]]) -> pd.DataFrame:
    """(update, value, "train" or "valid") of each point; of the same types if there are none."""
    return pd.DataFrame(points, columns=["update", "value", "of"]).astype({"update": int, "value": float, "of": str})


def build(models: Models, page: gr.Blocks, kept: gr.BrowserState) -> None:
    """Lays out the tab in the block that is open. ``page`` fills it when it is loaded; a browser keeps in ``kept`` the name
    of its run."""
    has_samples = Path(runs.SAMPLES).is_dir()
    folders = [("the 18 samples", runs.SAMPLES)] * has_samples + [("data", "data")]
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                model = gr.Dropdown(list(registry.MODELS), value=MODEL, label="Model, or a checkpoint's path",
                                    allow_custom_value=True, min_width=200)  # fmt: skip
                data = gr.Dropdown(folders, value=folders[0][1], label="Data, or a folder's path", allow_custom_value=True,
                                   min_width=200)  # fmt: skip
            with gr.Row():
                epochs = gr.Number(200 if has_samples else 5, label="Epochs", min_width=110)
                batch_size = gr.Number(3 if has_samples else 16, label="Batch size", precision=0, min_width=110)
            with gr.Row():
                lr = gr.Number(3e-3 if has_samples else 0, label="Learning rate (0: the model's)", min_width=110)
                limit = gr.Number(0, label="Limit of samples (0: all)", precision=0, min_width=110)
            output = gr.Textbox(label="Output", placeholder="studio/NAME.pth, by the name of the run", max_lines=1)
            further = gr.Textbox(runs.quick_options(MODEL) if has_samples else "", label="Further options", lines=2,
                                 info="as on the command line, the model's own too")  # fmt: skip
            with gr.Row():
                start = gr.Button("Train", variant="primary", min_width=120)
                stop = gr.Button("Stop", interactive=False, min_width=120)
            unfinished = gr.Dropdown(models.runs.unfinished(), value=None, label="A run that is not finished")
            resume = gr.Button("Resume")
            gr.Markdown(ABOUT)
        with gr.Column(scale=3, min_width=320):
            status = gr.Textbox("No training yet.", label="Training", interactive=False, lines=1, max_lines=6,
                                elem_id="training")  # fmt: skip
            measure = gr.Dropdown(["loss"], value="loss", label="Curve", min_width=120)
            plot = gr.LinePlot(table([]), x="update", y="value", color="of", height=300, show_label=False, buttons=[],
                               tooltip="all", color_title=" ", visible=False, elem_id="curve")  # fmt: skip
            pictures = gr.Gallery(label="Pictures", columns=1, allow_preview=False, interactive=False, buttons=[],
                                  object_fit="contain", height="auto", show_label=False, visible=False, elem_id="pictures",
                                  elem_classes=["sheets", PIXELS])  # fmt: skip
            box = command_box("", "docs/training.md")
    fields, name, seen = [model, data, epochs, batch_size, lr, limit, output, further], gr.State(""), gr.State(None)
    timer = gr.Timer(EVERY, active=False)
    shown = [seen, status, measure, plot, pictures, timer, start, stop, resume, unfinished]
    look = dict(show_progress="hidden", trigger_mode="once")

    def show(name: str, measure: str, seen: tuple | None):
        """What there is to see of the run, unless that was ``seen`` already."""
        if not (run := models.runs.by_name.get(name)):
            return [gr.skip() for _ in shown]
        live = run.is_live  # before it is read, so that the last look comes after its end
        run.log.read()
        new = name, measure, live, run.message(), run.log.position()
        if new == seen:
            return [gr.skip() for _ in shown]
        curves = run.log.curves()
        measures = sorted({tag.partition("/")[2] for tag in curves} | {"loss"}, key=lambda m: (m != "loss", m))
        points = [(*point, of) for of in ("train", "valid") for point in curves.get(f"{of}/{measure}", [])]
        drawn = [(picture_file(models, picture), tag) for tag, picture in run.log.pictures().items()]
        return [new, new[3], gr.Dropdown(measures),
                gr.LinePlot(table(points), y_title=measure, visible=bool(points)),
                gr.Gallery(drawn, visible=bool(drawn)), gr.Timer(active=live), gr.Button(interactive=not live),
                gr.Button(interactive=live), gr.Button(interactive=not live),
                gr.Dropdown(models.runs.unfinished())]  # fmt: skip

    def preview(*values) -> str:
        return runs.script(Options(*values))

    def begin(*values):
        options = Options(*values)
        run = models.runs.start(options)
        return run.name, run.name, runs.script(options, run.name)

    def resumed(name: str | None):
        if not name:
            raise ValueError("Choose a run that is not finished; those in checkpoints/ are offered.")
        run = models.runs.resume(name)
        return run.name, run.name, shlex.join(run.command)

    def end(name: str) -> None:
        if run := models.runs.by_name.get(name):
            run.stop()

    gr.on([model.change, data.change], lambda model, data: runs.quick_options(model) if data == runs.SAMPLES else "",
          [model, data], further, show_progress="hidden")  # fmt: skip
    gr.on([page.load, *(field.change for field in fields)], said(preview), fields, box, **look)
    page.load(lambda: gr.Dropdown(models.runs.unfinished()), None, unfinished)
    attach = page.load(lambda kept: kept, kept, name, show_progress="hidden")
    begun = start.click(said(begin), fields, [name, kept, box], show_progress_on=start)
    again = resume.click(said(resumed), unfinished, [name, kept, box], show_progress_on=resume)
    for event in attach, begun, again:
        event.success(said(show), [name, measure, seen], shown, show_progress="hidden")
    stop.click(said(end), name, None, show_progress="hidden")
    timer.tick(said(show), [name, measure, seen], shown, **look)
    measure.input(said(show), [name, measure, seen], shown, show_progress="hidden")
