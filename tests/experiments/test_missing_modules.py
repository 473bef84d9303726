"""Messages of the tools that need mmws.experiments, if a module is missing."""

import sys

import pytest

from tests.helpers.commands import tool_error


@pytest.mark.parametrize('name', ['study.py', 'sweep.py', 'benchmark.py', 'landscape.py', 'lr_range.py',
                                  'bn_statistics.py', 'compare_transplants.py'])
@pytest.mark.parametrize(('missing', 'message'), [
    ('mmws.experiments', 'error: tools/{name} needs mmws.experiments, which is not in the installed package; '
                         'run it from a checkout of the repository (pip install -e .)'),
    ('rich', "error: No module named 'rich'; install the missing package (see Install in README.md)"),
])
def test_a_missing_module_is_one_line(name, missing, message, monkeypatch):
    class Finder:
        @staticmethod
        def find_spec(module, path=None, target=None):
            if module == missing:
                raise ModuleNotFoundError(f'No module named {module!r}', name=module)

    for loaded in [loaded for loaded in sys.modules if f'{loaded}.'.startswith(f'{missing}.')]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(sys, 'meta_path', [Finder, *sys.meta_path])
    assert tool_error(name) == message.format(name=name)
