"""Pictures of the page of homework.studio for the documents: each tab in a wide window and in a narrow one; and how long it
takes to start: ``python -m bench.studio``."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from homework.core import cli
from homework.datasets.image_files import image_paths
from homework.priors.pairs import SHIPPED, load_pair, read_cascade
from homework.studio_tabs import models

PAIR = "BSQPatchAutoEncoder", "AutoregressiveModel"
WIDTHS, HEIGHT = (1600, 400), 900
COLOURS = 192  # of a picture's palette, with which it is a third as large


def browser(playwright):
    """Chromium: the one that Playwright has installed, or the system's."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


def screenshots(folder: Path) -> None:
    """Writes studio_TAB_WIDTH.png into ``folder``."""
    from playwright.sync_api import sync_playwright

    folder, here = folder.absolute(), Path.cwd()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright, contextlib.chdir(temporary):
        os.environ |= {"GRADIO_TEMP_DIR": temporary, "PYTHONPATH": str(here)}
        for name in "data", "docs":  # what a training writes is gone afterwards
            os.symlink(here / name, name)
        samples = image_paths("data/sample")
        shared = models.load(PAIR, *load_pair(*PAIR, torch.device("cpu")), samples, Path(temporary))
        from homework.studio_tabs import page

        served, address = page.launch(shared, "127.0.0.1", None)
        chromium = browser(playwright)
        try:
            for width in WIDTHS:
                window = chromium.new_page(viewport={"width": width, "height": HEIGHT})
                window.set_default_timeout(120_000)
                window.goto(address)
                window.locator("#table").get_by_role("cell", name="AVIF").wait_for()
                shoot(window, folder / f"studio_compress_{width}.png")
                show_tab(window, "Tokens")
                window.locator("#grid img").click(position={"x": 120, "y": 120})
                window.locator("#alternatives button img").nth(9).wait_for()
                shoot(window, folder / f"studio_tokens_{width}.png")
                for name, done in ("Generate", "#generated"), ("Complete", "#completed"):
                    show_tab(window, name)
                    window.get_by_role("button", name=name, exact=True).click()
                    window.locator(".costs.prose:visible", has_text="nats").wait_for()
                    window.locator(f"{done} img").wait_for()
                    shoot(window, folder / f"studio_{name.lower()}_{width}.png")
                show_tab(window, "Digits")
                draw(window, [(9, 10), (13, 6), (18, 8), (18, 12), (15, 16)])
                window.get_by_role("button", name="End it in eight ways").click()
                window.locator("#endings img").wait_for()
                shoot(window, folder / f"studio_digits_{width}.png")
                show_tab(window, "Coarse to fine")
                window.locator("#codes img").wait_for()
                window.get_by_role("button", name="Sample the finer grids").click()
                window.locator("#stages img").nth(len(read_cascade(SHIPPED))).wait_for()
                shoot(window, folder / f"studio_coarse_{width}.png")
                train(window, folder / f"studio_train_{width}.png")
                window.close()
        finally:
            chromium.close()
            served.close(verbose=False)
            shared.runs.close()


def show_tab(window, name: str) -> None:
    """By its button, or, in a narrow window, in the menu of those for which there is no room."""
    window.locator("[role=tab]:visible").first.wait_for()
    tab = window.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():
        window.locator(".overflow-menu > button").click()
        tab = window.locator(".overflow-dropdown button", has_text=name)
    tab.click()


def train(window, path: Path) -> None:
    """On the samples, until there are pictures."""
    show_tab(window, "Train")
    window.get_by_role("button", name="Train", exact=True).click()
    window.locator("#pictures img").first.wait_for()
    shoot(window, path)
    window.get_by_role("button", name="Stop").locator("visible=true").click()


def draw(window, points: list[tuple[float, float]]) -> None:
    """Draws with the mouse from point to point, each (column, row) of the 28x28 pixels, after clearing the pad."""
    window.get_by_role("button", name="Clear").click()
    window.wait_for_timeout(1000)
    box = window.locator("#pad canvas").bounding_box()
    (x, y), *rest = ((box["x"] + x * box["width"] / 28, box["y"] + y * box["height"] / 28) for x, y in points)
    window.mouse.move(x, y)
    window.mouse.down()
    for x, y in rest:
        window.mouse.move(x, y)
    window.mouse.up()


def start() -> None:
    """Prints the seconds from the command until it prints its address, until the first picture is on the page, and until a
    file of ours is; and what its process has computed by then."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        window = browser(playwright).new_page()
        begin = time.perf_counter()
        server = subprocess.Popen([sys.executable, "-m", "homework.studio"], stdout=subprocess.PIPE, text=True)
        address = server.stdout.readline().split()[0]
        print(f"{time.perf_counter() - begin:.1f} s until the address")
        window.goto(address)
        window.wait_for_function("document.querySelector('#wipe img')?.naturalWidth")
        print(f"{time.perf_counter() - begin:.1f} s until the first picture")
        window.locator("#table").get_by_role("cell", name="ours").wait_for()
        print(f"{time.perf_counter() - begin:.1f} s until the first file of ours")
        server.send_signal(signal.SIGINT)  # it removes its temporary files
        _, _, usage = os.wait4(server.pid, 0)
        print(f"{usage.ru_utime + usage.ru_stime:.1f} s of processor time of the server")


def shoot(window, path: Path) -> None:
    """The whole page, in few colours."""
    window.wait_for_timeout(1500)  # pictures that are being loaded, and the mark of what was running
    window.screenshot(path=path, full_page=True, animations="disabled")
    Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    cli.main("python -m bench.studio", start)
