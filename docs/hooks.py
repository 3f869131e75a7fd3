"""What the site has beyond its Markdown: the pictures of bench/figures, and links from modules to their reference.

With it the same files read well on GitHub, where a picture and a module are linked by their path in the repository.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent


def on_files(files, config):
    """Takes the pictures into the site, where bench/figures is figures/."""
    for path in sorted((ROOT / "bench/figures").glob("*.*")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Pictures are in figures/; a link to a module of the package leads to its reference."""
    markdown = markdown.replace("](../bench/figures/", "](figures/")

    def reference(match: re.Match) -> str:
        text, path = match.groups()
        return f"[{text}][{path.replace('/', '.').removesuffix('.py').removesuffix('.__init__')}]"

    return re.sub(r"\[([^\]]*)\]\(\.\./(homework/[\w/]+\.py)\)", reference, markdown)


def on_page_content(html, page, config, files):
    """Docstrings name code as Sphinx does, :class:`X`, and begin a diagram by ::, which Markdown does not know."""
    name = r":(?:class|func|meth|mod|data):<code>[~.]?(?:(?P<path>homework[\w.]*)|[^<]*?)</code>"

    def code(match: re.Match) -> str:
        text = re.search(r"<code>[~.]?(.*?)</code>", match.group())[1]
        shown = f"<code>{text}</code>"
        return f'<autoref identifier="{match["path"]}" optional>{shown}</autoref>' if match["path"] else shown

    return re.sub(r"<p>::</p>\s*", "", re.sub(name, code, html))
