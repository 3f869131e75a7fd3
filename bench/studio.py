"""Pictures of the page of homework.studio for the documents: each tab in a wide window and in a narrow one."""

import os
import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image

from homework.datasets.image_files import image_paths
from homework.priors.pairs import load_pair
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

    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        os.environ["GRADIO_TEMP_DIR"] = temporary
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
                window.get_by_role("tab", name="Tokens").click()
                window.locator("#grid img").click(position={"x": 120, "y": 120})
                window.locator("#alternatives button img").nth(9).wait_for()
                shoot(window, folder / f"studio_tokens_{width}.png")
                for name, done in ("Generate", "#generated"), ("Complete", "#completed"):
                    window.get_by_role("tab", name=name).click()
                    window.get_by_role("button", name=name, exact=True).click()
                    window.locator(".costs.prose:visible", has_text="nats").wait_for()
                    window.locator(f"{done} img").wait_for()
                    shoot(window, folder / f"studio_{name.lower()}_{width}.png")
                window.close()
        finally:
            chromium.close()
            served.close(verbose=False)


def shoot(window, path: Path) -> None:
    """The whole page, in few colours."""
    window.wait_for_timeout(1500)  # pictures that are being loaded, and the mark of what was running
    window.screenshot(path=path, full_page=True, animations="disabled")
    Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
