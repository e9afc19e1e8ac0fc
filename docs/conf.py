"""Sphinx: the manual as a site that needs no network.

python -m sphinx -W --keep-going docs runs/docs
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the API page documents the code beside it, not an installed one

project = "SafeVLM"
author = "The SafeVLM maintainers"
project_copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc"]

myst_heading_anchors = 4

html_theme = "furo"
html_title = "SafeVLM"
html_static_path = ["style"]
html_css_files = ["manual.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"  # docstrings mark code with single backticks
