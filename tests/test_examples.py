import importlib.util

import pytest

from tests.helpers.commands import REPOSITORY


@pytest.mark.parametrize(('name', 'standardized'), [('video', 5), ('point_cloud', 3)])
def test_example_converts_and_its_loss_falls(name, standardized):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / 'examples' / f'{name}.py')
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    report, losses = example.train()
    assert len(report.converted) == standardized
    assert report.unseen == []
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
