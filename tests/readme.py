"""Print README.md, made from nbs/index.ipynb (nbdev-readme needs quarto; this needs nbconvert only)."""

import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parents[1]


def readme() -> str:
    "The text of README.md."
    notebook = nbformat.read(root / "nbs/index.ipynb", as_version=4)
    notebook.cells = [
        cell for cell in notebook.cells if not re.match(r"#\|\s*(hide|default_exp)\b", "".join(cell.source))
    ]
    notebook.metadata["language_info"] = {"name": "python"}  # nbdev-clean leaves it out
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = re.sub(r"\n{3,}", "\n\n", text.strip()) + "\n"
    return text.replace("](images/", "](nbs/images/").replace("](../", "](")


if __name__ == "__main__":
    print(readme(), end="")
