"""Settings of Sphinx for `make docs`; its source folder is made by tools/website/build.py."""

from gradvac import __version__

project = "gradvac"
author = "the authors of gradvac"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # as code hosts make them: links such as engine.md#the-check are checked
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
smartquotes = False  # --option stays as it is written
napoleon_use_ivar = True  # attributes of a docstring beside fields of a dataclass
suppress_warnings = ["myst.header"]  # pages that start below a first heading
html_theme = "furo"
html_title = f"gradvac {release}"
html_copy_source = html_show_copyright = False
html_show_sourcelink = False
html_show_search_summary = False  # it would fetch pages, which browsers refuse for files
html_static_path = ["static"]
html_css_files = ["wide.css"]
