"""Sphinx's configuration of the site; `make docs` builds it into work_dirs/site."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from mmws import __version__

project = 'mmws'
author = copyright = 'The mmws authors'
version = release = __version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.mathjax', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
exclude_patterns = ['*_notes.md']  # parts of the pages that `make study` writes

myst_heading_anchors = 3

autodoc_mock_imports = [name for name in ('mmengine', 'mmcv', 'mmseg', 'numpy') if find_spec(name) is None]
autodoc_typehints_format = 'short'
maximum_signature_line_length = 80
napoleon_custom_sections = ['Shape']

html_theme = 'furo'
html_title = f'mmws {version}'
html_static_path = ['_static']
html_css_files = ['site.css']
html_copy_source = html_show_sphinx = html_use_index = False
