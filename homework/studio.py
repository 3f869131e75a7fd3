"""Opens a page in the browser to play with the models: ``python -m homework.studio``. See ``--help``."""

import os
import tempfile
import threading
from pathlib import Path

from homework.core import checks, cli, devices
from homework.datasets.image_files import image_paths
from homework.evaluation import pages
from homework.priors.pairs import load_pair
from homework.studio_tabs import models, stubs

DEFAULT, MOST_SAMPLES = "data/sample", 18


def studio(*, tokenizer: str = "BSQPatchAutoEncoder", autoregressive: str = "AutoregressiveModel",
           images: str = DEFAULT, host: str = "127.0.0.1", port: int | None = None,
           device: str = "auto") -> None:  # fmt: skip
    """Serves a page on this machine, until Ctrl-C: compress images, look at their tokens and change them, generate and
    complete images, train models. Nothing leaves the machine.

    Examples:
        python -m homework.studio
        python -m homework.studio --tokenizer VQPatchAutoEncoder --autoregressive VQAutoregressiveModel --port 8000

    Args:
        tokenizer: checkpoint or name of a tokenizer.
        autoregressive: checkpoint or name of a prior over that tokenizer's grids.
        images: samples to choose from: a file or a folder; without one, drop images on the page.
        host: the address to listen at. Others than 127.0.0.1 let other machines in, without a password; whoever comes in
            can start trainings, which write files.
        port: to listen at; by default the first that is free from 7860 on.
        device: auto, cpu, cuda or mps.
    """
    checks.integer(1, 65535, **{"--port": 7860 if port is None else port})
    stubs.leave_out()
    pages.require("gradio")
    samples = list(image_paths(images)[:MOST_SAMPLES]) if os.path.exists(images) or images != DEFAULT else []
    names = tokenizer, autoregressive
    with tempfile.TemporaryDirectory(prefix="homework-studio-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads and pictures are gone afterwards
        shared = models.load(names, *load_pair(*names, devices.pick_device(device)), samples, Path(folder))
        from homework.studio_tabs import page

        served, address = page.launch(shared, host, port)
        try:
            print(f"{address} shows the page; open it in a browser. Ctrl-C ends it.", flush=True)
            threading.Event().wait()
        finally:
            served.close(verbose=False)
            for run in shared.runs.close():
                print(f"The training {run.name} was stopped and saved; the page and the command line can resume it.")


if __name__ == "__main__":
    cli.main("python -m homework.studio", studio)
