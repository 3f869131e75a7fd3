"""The look of homework.studio in headless Chromium: readable, nothing cut off, and to be used by the keyboard alone."""

import contextlib
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SIZE, build
from PIL import Image

from homework.studio_tabs import models

TABS = ("Compress", "Tokens", "Generate", "Complete", "Digits", "Coarse to fine", "Train")
# the texts on the page whose contrast to what is behind them is below 4.5, as WCAG 2.2 has it, with that contrast
FAINT = """() => {
    const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const colour = text => { const c = text.match(/[0-9.]+/g).map(Number); return [c[0], c[1], c[2], c[3] ?? 1]; };
    const over = (c, below) => below.map((v, i) => v * (1 - c[3]) + c[i] * c[3]);
    const behind = e => e ? over(colour(getComputedStyle(e).backgroundColor), behind(e.parentElement)) : [255, 255, 255];
    const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const text = walk.currentNode.textContent.trim(), e = walk.currentNode.parentElement;
        if (!/[a-z0-9]/i.test(text) || e.offsetWidth < 3 || e.closest("[disabled], script, style")) continue;
        if (!e.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
        const below = behind(e), own = over(colour(getComputedStyle(e).color), below);
        const [a, b] = [light(below), light(own)].sort((x, y) => y - x), contrast = (a + 0.05) / (b + 0.05);
        if (contrast < 4.5) found.push([text, contrast]);
    }
    return found;
}"""
FOCUSED = """() => { const e = document.activeElement, s = getComputedStyle(e), seen = e.dataset.seen;
    e.dataset.seen = "yes";
    return seen || e === document.body ? null : [e.outerHTML.slice(0, 200), s.outlineStyle, parseInt(s.outlineWidth)]; }"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pytest.importorskip("gradio", reason='there is no gradio; pip install "homework[studio]"')
    folder = tmp_path_factory.mktemp("look")
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    (folder / "docs").mkdir()
    (folder / "docs" / "codec.md").write_text("# Codec\n\nIt says what this is.")
    Image.fromarray(pixels).save(folder / "a.png")
    with pytest.MonkeyPatch.context() as context:
        context.chdir(folder)
        context.setenv("GRADIO_TEMP_DIR", str(folder))
        for variable in "no_proxy", "NO_PROXY":  # to be put back
            context.setenv(variable, "")
        from homework.studio_tabs import page

        pair = build("BSQPatchAutoEncoder").eval(), build("AutoregressiveModel").eval()
        served, address = page.launch(models.load(("t.pth", "p.pth"), *pair, ["a.png"], Path(folder)), "127.0.0.1", None)
        yield address
        served.close(verbose=False)


def opened(browser, address: str, width: int, **options):
    window = browser.new_page(viewport={"width": width, "height": 900}, **options)
    window.set_default_timeout(180_000)  # on a busy machine
    window.goto(address)
    window.locator("#table td", has_text="ours").wait_for()
    return window


@pytest.fixture
def late(address):
    """The address of the same page, whose streams end two seconds late."""
    port = int(address.rstrip("/").rpartition(":")[2])

    def carry(one, other, delayed: bool) -> None:
        with one, other, contextlib.suppress(OSError):
            while sent := one.recv(1 << 16):
                time.sleep(2 * (delayed and b"close_stream" in sent))
                other.sendall(sent)
            other.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = server.accept()[0], socket.create_connection(("127.0.0.1", port))
                for one, other in (near, far), (far, near):
                    threading.Thread(target=carry, args=(one.dup(), other.dup(), one is far), daemon=True).start()
                near.close()
                far.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def show(window, tab: str) -> None:
    """By its button, or, in a narrow window, in the menu of those for which there is no room."""
    button = window.get_by_role("tab", name=tab, exact=True)
    if not button.is_visible():
        window.locator(".overflow-menu > button").click()
        button = window.locator(".overflow-dropdown button", has_text=tab)
    button.click()
    window.wait_for_timeout(700)  # colours change gradually


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_every_tab_is_readable_and_fits(address, chromium, width, scheme):
    window = opened(chromium, address, width, color_scheme=scheme)
    window.mouse.move(0, 0)
    for tab in TABS:
        show(window, tab)
        assert not window.evaluate(FAINT), tab
        root = window.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert root[0] <= root[1], tab
    window.close()


def test_the_focus_is_seen_wherever_the_tab_key_goes(address, chromium):
    window = opened(chromium, address, 1200)
    for tab in ("Compress", "Digits", "Train"):
        show(window, tab)
        window.evaluate("document.querySelectorAll('[data-seen]').forEach(e => delete e.dataset.seen)")
        window.keyboard.press("Tab")
        reached = []
        while found := window.evaluate(FOCUSED):
            reached.append(found[0])
            assert found[1] not in ("none", "hidden") and found[2] >= 2, found[0]
            window.keyboard.press("Tab")
        assert any('type="range"' in one for one in reached) == (tab != "Train") and len(reached) > 10
    window.close()


def test_the_keyboard_wipes_and_chooses_tokens(address, chromium):
    window = opened(chromium, address, 1200)
    handle = window.locator("#wipe .outer")
    before = handle.bounding_box()["x"]
    window.locator("#meet input[type=range]").focus()
    for _ in range(10):
        window.keyboard.press("ArrowRight")
    window.wait_for_function("before => document.querySelector('#wipe .outer').getBoundingClientRect().x > before + 20",
                             arg=before)  # fmt: skip
    show(window, "Tokens")
    window.locator("#token", has_text="Row 2, column 3").wait_for()

    def write(field: str, text: str) -> None:
        window.get_by_label(field, exact=True).locator("visible=true").focus()
        window.keyboard.press("Control+A")
        window.keyboard.type(text)

    write("Row", "1")
    window.locator("#token", has_text="Row 1, column 3").wait_for()
    write("Column", "0")
    window.locator("#token", has_text="Row 1, column 0").wait_for()
    write("Token", "13")
    window.locator("#token", has_text="Row 1, column 0: token 13, code 1101").wait_for()
    window.locator("#flips button", has_text="bit 0:").focus()
    window.keyboard.press("Enter")
    window.locator("#token", has_text="Row 1, column 0: token 12, code 1100").wait_for()
    write("Token", "99")
    window.locator(".toast-body", has_text="The token is 99, but must be an integer from 0 to 15.").wait_for()
    window.close()


def test_what_began_as_the_stream_of_answers_ended_is_answered(late, chromium):
    window = opened(chromium, late, 1200)
    show(window, "Tokens")
    window.locator("#token", has_text="Row 2, column 3").wait_for()
    for row in "1", "0":
        window.get_by_label("Row", exact=True).locator("visible=true").fill(row)  # as what goes with the former ends
        window.locator("#token", has_text=f"Row {row}, column 3").wait_for()
    window.close()


def test_the_documents_are_a_click_away_where_there_are_any(address, chromium):
    window = opened(chromium, address, 1200)
    with window.context.expect_page() as other:
        window.get_by_role("link", name="docs/codec.md").locator("visible=true").click()
    assert "It says what this is." in other.value.locator("body").inner_text()
    other.value.close()
    show(window, "Generate")
    assert window.get_by_text("docs/generation.md").locator("visible=true").count() == 1  # which is not there
    assert not window.get_by_role("link", name="docs/generation.md").count()
    window.close()
