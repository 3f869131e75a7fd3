"""Pages of results, from the Jinja2 templates in ``templates/``. Knows no models."""

import importlib
from pathlib import Path
from typing import Any

from homework.core import checks, files
from homework.evaluation.metrics import psnr


def require(*packages: str) -> None:
    """ModuleNotFoundError if one of the packages is not installed, before any work: a command imports them late, since
    most commands need none of them."""
    for name in packages:
        importlib.import_module(name)


def write_page(template: str, title: str, results: dict[str, Any], path: Path) -> None:
    """Writes the HTML page that ``template`` makes of ``results``. It refers to nothing but the files beside it."""
    import jinja2

    pages = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                               trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)  # fmt: skip
    pages.filters |= {"percent": percent, "psnr": psnr, "file_name": file_name, "counted": checks.count}
    pages.filters["number"] = lambda x, digits=0: f"{x:,.{digits}f}"  # as in 1,234.5
    with files.replacing(path) as temporary:
        temporary.write_text(pages.get_template(template).render(results, title=title), "utf-8")


def percent(fraction: float, sign: str = "-", digits: int = 1) -> str:
    """As in 12.5 %; with ``sign`` "+", a plus before what is positive."""
    return f"{fraction:{sign}.{digits}%}".replace("-", "−").replace("%", " %")


def file_name(codec: str) -> str:  # as in jpeg_xl
    return codec.lower().replace(" ", "_")
