"""How Sphinx makes the site: `uv run --group docs sphinx-build -W docs build/site`."""

import sys
from pathlib import Path

from ganlab import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "ganlab"
release = __version__
html_title = f"ganlab {release}"
html_theme = "furo"
pygments_dark_style = "github-dark"
html_show_copyright = False
html_copy_source = False
exclude_patterns = ["_ext", "example_plugin"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_click",
    "sphinx_copybutton",
    "ganlab_pages",
]

nitpicky = True
# the types of Python, torch and pluggy are explained on other hosts
nitpick_ignore_regex = [("py:.*", r"(?!ganlab\.(api|testing)\.\w+$).*")]
suppress_warnings = ["config.cache"]  # nothing in this file is kept between builds

# headings have the anchors that they have in a code browser
myst_heading_anchors = 4
myst_enable_extensions = ["fieldlist"]
highlight_language = "none"
smartquotes = False  # `--set` has two hyphens
default_role = "literal"  # docstrings write code in single backticks
copybutton_prompt_text = "$ "

add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # a method without its own text does what the class above says
autodoc_default_options = {"exclude-members": "model_config, model_post_init"}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
