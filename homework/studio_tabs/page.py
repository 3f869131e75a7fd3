"""The page: its tabs, and what it looks like. Nothing is fetched from other machines, and nothing is sent there."""

import os

import gradio as gr

from homework.studio_tabs import coarse_to_fine_tab, compress_tab, digits_tab, sampling_tabs, tokens_tab, train_tab
from homework.studio_tabs.models import Models

TICK = 3  # seconds
STYLE = """
:focus-visible { outline: 2px solid #ea580c !important; outline-offset: 1px; }
body:not(.dark) [role=tab][aria-selected=true] { color: #c2410c; }
body:not(.dark) .cm-line span { color: #9a3412 !important; }
.cm-line span { white-space: nowrap; }
input[type=range]::-webkit-slider-thumb { border: 1px solid #71717a; }
input[type=range]::-moz-range-thumb { border: 1px solid #71717a; }
.pixels img { image-rendering: pixelated; }
.pixels img, #grid img, #drawn img { width: 100% !important; object-fit: contain !important; }
#generated .image-frame, #completed .image-frame { width: 100%; height: auto; }
#generated img, #completed img { height: auto; max-height: 75vh; }
.thumbnails .grid-wrap { min-height: 0; height: auto; max-height: none; }
.thumbnails .grid-container { grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)); grid-template-rows: none;
    grid-auto-rows: auto; height: auto; padding-top: 0; }
.thumbnails .thumbnail-item { width: 100%; height: auto; aspect-ratio: 3 / 2; }
.patches .grid-container { grid-template-columns: repeat(auto-fill, minmax(max(48px, 17%), 1fr)); }
.patches .thumbnail-item { aspect-ratio: 1; }
.patches .caption-label { position: static; display: block; max-width: none; text-align: center; padding: 0;
    font-size: 11px; overflow: visible; white-space: normal; }
#pad canvas { display: block; width: 100%; max-width: 448px; margin: auto; touch-action: none; cursor: crosshair;
    image-rendering: pixelated; }
.sheets .grid-wrap { max-height: none; min-height: 0; height: auto; }
.sheets .grid-container { grid-auto-rows: auto; height: auto; padding-top: 0; }
.sheets .thumbnail-item { aspect-ratio: auto; width: 100%; height: auto; }
#stages .grid-container { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); }
.sheets img { height: auto !important; max-height: 40vh; }
.sheets .caption-label { position: static; display: block; max-width: none; text-align: center; overflow: visible; }
#table td, #table th { white-space: nowrap; word-break: normal; padding: 4px 12px; text-align: right; }
.tab-container button { padding: 0 8px; }
label[data-testid="block-label"]:not(.sr-only) { position: static; width: fit-content; }
footer { display: none !important; }
"""


def build(models: Models) -> gr.Blocks:
    """All tabs, over models that all users share; what one of them does is in states of his own."""
    with gr.Blocks(title="homework studio", analytics_enabled=False, fill_width=True) as page:
        kept = gr.BrowserState("", storage_key="homework-training")  # here, for what is in a tab waits until that is opened
        gr.Markdown("# homework studio\nImages to tokens, to small files, and to new images; all of it on this machine.")
        with gr.Tab("Compress", id="compress"):
            compress_tab.build(models, page)
        with gr.Tab("Tokens", id="tokens") as tab:
            tokens_tab.build(models, tab)
        with gr.Tab("Generate", id="generate"):
            sampling_tabs.build_generate(models)
        with gr.Tab("Complete", id="complete"):
            sampling_tabs.build_complete(models)
        with gr.Tab("Digits", id="digits") as tab:
            digits_tab.build(models, tab)
        with gr.Tab("Coarse to fine", id="coarse_to_fine") as tab:
            coarse_to_fine_tab.build(models, tab)
        with gr.Tab("Train", id="train"):
            train_tab.build(models, page, kept)
        # gradio ends its stream of answers after the last one, and that of an event that began meanwhile waits for the next
        gr.Timer(TICK).tick(lambda: None, show_progress="hidden", trigger_mode="multiple")
    return page.queue(default_concurrency_limit=4, api_open=False)


def launch(models: Models, host: str, port: int | None) -> tuple[gr.Blocks, str]:
    """Serves the page, and returns it and its address. OSError if the port is taken; by default the first that is free from
    7860 on."""
    for variable in "no_proxy", "NO_PROXY":  # gradio asks the page whether it is there
        os.environ[variable] = ",".join(filter(None, [os.environ.get(variable), host, "localhost"]))
    page = build(models)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    theme.set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500",
              input_placeholder_color="*neutral_500", button_primary_background_fill="*primary_700",
              button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover="*primary_800",
              button_primary_background_fill_hover_dark="*primary_800")  # light text on dark, and dark on light
    try:
        _, address, _ = page.launch(server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
                                    footer_links=[], run_history=False, ssr_mode=False, theme=theme, css=STYLE,
                                    allowed_paths=["docs"])  # fmt: skip
    except OSError as error:
        raise OSError(f"The page cannot be served at {host}, port {port or 'any from 7860 on'}: is it taken? Name another "
                      "by --port.") from error  # fmt: skip
    return page, address
