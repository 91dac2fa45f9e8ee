"""The documents as a site: `make docs` builds it with warnings as errors."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "BrainJanus"
author = "The BrainJanus developers"
release = version = version_of("brainjanus")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "decisions/README.md"]
html_theme = "furo"
html_title = f"BrainJanus {release}"
html_theme_options = {"source_repository": "", "footer_icons": []}
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]  # a page of the log begins its days at the second level

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100


def as_text(app, what, name, obj, options, lines):
    """Docstrings are plain text: words in backquotes are code, and so are indented lines; the rest is as it is."""
    blocks: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        if not paragraph.strip():
            continue
        if all(line.startswith("    ") for line in paragraph.splitlines() if line.strip()):
            blocks += ["::", *(f"    {line}" for line in paragraph.splitlines())] if blocks else ["::", "", paragraph]
            blocks.append("")
            continue
        text = re.sub(r"([\\*_|<>])", r"\\\1", re.sub(r"`([^`]+)`", "\0\\1\1", paragraph.replace("``", "`")))
        text = re.sub("\0(.*?)\1", code, text, flags=re.DOTALL)
        blocks += [*(line.strip() for line in text.splitlines()), ""]
    lines[:] = blocks


def code(found):
    plain = re.sub(r"\\(.)", r"\1", found.group(1))
    return f"``{plain}``"


def setup(app):
    app.connect("autodoc-process-docstring", as_text)
