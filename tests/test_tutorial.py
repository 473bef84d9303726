"""docs/tutorial.ipynb: a short run of its code, and the outputs that it keeps."""

import json
import math
import os
import re
import textwrap

import pytest

from mmws.cli.conversion_report import inspect_conversion
from tests.helpers.versions import needs_torch

for package in ('nbclient', 'ipykernel'):
    pytest.importorskip(package, reason='needs nbclient and ipykernel')

from tests.helpers import notebook as tutorial  # noqa: E402 (it imports nbclient)


def printed(notebook) -> str:
    """Return what the code printed."""
    return ''.join(output.text for cell in tutorial.code_cells(notebook) for output in cell.outputs
                   if output.output_type == 'stream')


def check_results(notebook) -> None:
    """Assert that each code cell ran, in order and without an error, and that the folded networks compute the same."""
    cells = tutorial.code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == 'error']
    text = printed(notebook)
    assert 'error: ' not in text  # of a tool
    assert 'mentions mmws: False' in text
    assert "<class 'torch.nn.modules.conv.Conv2d'> GroupNorm(" in text  # of the toolkit without mmws
    ours, theirs = map(int, re.search(r'detections: (\d+) and (\d+)', text).groups())
    assert ours == theirs > 0
    assert float(re.search(r'difference of the scores: (\S+)', text)[1]) < 1e-4
    assert float(re.search(r'difference of the bboxes: (\S+) pixels', text)[1]) < 1e-2
    errors = [float(error) for error in re.findall(r'^p\d .* relative error (\S+)$', text, re.M)]
    assert len(errors) == 5
    assert all(error < 1e-4 for error in errors)  # not for NaN


@needs_torch('2.6', 'the export to ONNX')
def test_a_short_run(tmp_path):
    notebook = tutorial.execute(tmp_path, env={**os.environ, 'MMWS_TUTORIAL_STEPS': '100'})
    check_results(notebook)
    assert notebook.metadata['seconds'] > 1
    losses = [float(loss) for loss in re.findall(r'step \d+ of 100: loss (\S+)', printed(notebook))]
    assert len(losses) == 20
    assert math.isfinite(sum(losses))
    assert losses[-1] < losses[0]
    summary = json.loads((tmp_path / 'work_dirs' / 'tutorial-100' / 'training' / 'summary.json').read_text())
    assert (summary['steps'], summary['images_per_step'], summary['norm'], summary['ws']) == (100, 1, 'GN', True)
    assert all(0 <= summary[name] <= 1 for name in ('box_ap', 'mask_ap'))


def test_the_kept_outputs_are_those_of_a_full_run_of_this_code():
    notebook = tutorial.read()
    assert notebook.metadata.get('code_sha256') == tutorial.code_hash(notebook), (
        'the code of docs/tutorial.ipynb changed after its outputs were made; run `make tutorial`')
    check_results(notebook)
    assert notebook.metadata.get('seconds', 0) < 600  # written by the next `make tutorial`
    text = printed(notebook)
    steps = re.search(r"'MMWS_TUTORIAL_STEPS', (\d+)", tutorial.code_cells(notebook)[0].source)[1]
    assert f'step {steps} of {steps}: loss' in text
    assert float(re.search(r'^box_ap +(\S+)$', text, re.M)[1]) > 0.3


def test_the_pictures_are_small():
    outputs = [output for cell in tutorial.code_cells(tutorial.read()) for output in cell.outputs]
    pictures = [data for output in outputs for kind, data in output.get('data', {}).items() if 'image/' in kind]
    assert len(pictures) == 3
    assert max(map(len, pictures)) * 3 / 4 < 150_000  # base64
    assert tutorial.TUTORIAL.stat().st_size < 1_000_000


def test_the_config_for_own_data_is_converted(tmp_path):
    text = next(cell.source for cell in tutorial.read().cells if 'metainfo = dict(' in cell.source)
    path = tmp_path / 'config.py'
    path.write_text(textwrap.dedent(re.search(r'( +_base_.*?)```', text, re.S)[1]))
    report = inspect_conversion(str(path), {})
    assert len(report.report.converted) == 53  # the backbone's
    assert report.model.roi_head.mask_head.num_classes == 2
