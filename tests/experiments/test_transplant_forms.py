"""tools/compare_transplants.py as a user runs it, on a small network of a demo."""

import json

import pytest
import torch

from mmws.experiments import transplant_forms
from mmws.experiments.transplant_forms import FORMS, TEACHER
from tests.cli.test_transplant import DETECTION, batch_norm_model, options_for
from tests.helpers.commands import run_tool, tool_error


@pytest.fixture
def arguments(digits, tmp_path):
    """Return the arguments of the tool; the checkpoint has the statistics of noise images."""
    options = options_for(DETECTION, digits)
    torch.save({'state_dict': batch_norm_model(DETECTION, options).state_dict()}, tmp_path / 'bn.pth')
    return [str(DETECTION), str(tmp_path / 'bn.pth'), '--out', str(tmp_path / 'out'), '--cfg-options', *options,
            'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False',
            f'test_dataloader.dataset.data_root={digits}', f'test_evaluator.ann_file={digits}/annotations/val.json']


def test_each_start_is_tested(arguments, tmp_path, monkeypatch, capsys):
    names = ['weights by name', 'the norms only', 'filters and norms: the default', "weight='plain', weights by name",
             "norm='EstBN'"]
    monkeypatch.setattr(transplant_forms, 'FORMS', {name: FORMS[name] for name in names})
    run_tool('compare_transplants.py', *arguments)
    results = {result['form']: result for result in json.loads((tmp_path / 'out' / 'transplants.json').read_text())}
    assert list(results) == [TEACHER, *names]
    assert all('coco/segm_mAP' in result['metrics'] for result in results.values())
    distances = {name: result['distance'] for name, result in results.items()}
    assert distances[TEACHER] == 0
    assert distances['filters and norms: the default'] < distances['the norms only'] < distances['weights by name']
    assert distances["weight='plain', weights by name"] != distances['weights by name']
    # An EstBN without statistics of a training is a GroupNorm.
    assert distances["norm='EstBN'"] == pytest.approx(distances['filters and norms: the default'], abs=0.01)
    assert 'coco/bbox_mAP_50' not in capsys.readouterr().out


def test_bad_input_is_one_line(arguments, digits, tmp_path):
    model = torch.load(tmp_path / 'bn.pth', weights_only=True)['state_dict']
    backbone = {name[len('backbone.'):]: value for name, value in model.items() if name.startswith('backbone.')}
    torch.save(backbone, tmp_path / 'bn.pth')
    assert tool_error('compare_transplants.py', *arguments).endswith(
        'bn.pth is of a backbone; expected the whole network, which can be tested')
    assert 'out' in tool_error('compare_transplants.py', *arguments[:3], str(tmp_path / 'bn.pth'), *arguments[4:])
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'one.png').write_bytes(next(digits.rglob('*.png')).read_bytes())
    torch.save({'state_dict': model}, tmp_path / 'bn.pth')
    assert 'expected two images or more, one half to fit and one to measure; got' in tool_error(
        'compare_transplants.py', *arguments[:2], '--images', str(tmp_path / 'images'), *arguments[2:])
    missing = [argument.replace('val.json', 'missing.json') for argument in arguments]
    assert 'missing.json' in tool_error('compare_transplants.py', *missing)
