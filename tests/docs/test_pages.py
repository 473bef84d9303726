"""What the pages and the README say agrees with the code and the files."""

from __future__ import annotations

import ast
import doctest
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import stacks
import torch
import yaml

import mmws
from mmws.version import MINIMUM_TORCH
from tests.helpers.commands import REPOSITORY, tracked_files

DOCS = REPOSITORY / 'docs'
OF_TOOLKITS = {
    'configs/gn+ws', 'configs/gn+ws/metafile.yml', 'configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'tests/NAME',
    'tests/test_model', 'tests/test_models', 'tools/dataset_converters/voc_aug.py', 'tools/dist_'}
GENERATED = {'benchmark', 'compatibility', 'results', 'results_digits', 'results_transplant', 'sweep', 'trust'}
PAGES = [path for path in sorted(DOCS.glob('*.md')) if path.stem not in GENERATED and 'notes' not in path.stem]
TEXTS = [REPOSITORY / 'README.md', *PAGES]
with_each_text = pytest.mark.parametrize('path', TEXTS, ids=lambda path: path.stem)


def blocks(path: Path, language: str) -> list[str]:
    """Return the code blocks of a page in a language."""
    return re.findall(rf'^```{language}\n(.*?)^```', path.read_text(), re.M | re.S)


def test_the_readme_is_short_and_has_the_section_that_errors_name():
    text = (REPOSITORY / 'README.md').read_text()
    assert len(text) <= 8000
    assert len(text.splitlines()) <= 120
    assert '\n## Install\n' in text  # "see Install in README.md"
    assert len(re.findall(r'^pip install', text, re.M)) == 1


@with_each_text
def test_no_page_has_a_placeholder(path):
    assert re.findall(r'\b(?:XX+|YY+|ZZ+|TODO|FIXME|TBD)\b', path.read_text()) == []


@pytest.mark.parametrize('path', [*REPOSITORY.glob('*.md'), *DOCS.glob('*.md')], ids=lambda path: path.name)
def test_relative_links_lead_to_files(path):
    links = re.findall(r'\]\((?!https?:|#)([^)#\s]+)', path.read_text())
    assert not [link for link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize('path', [*REPOSITORY.glob('*.md'), *DOCS.glob('*.md')], ids=lambda path: path.name)
def test_anchors_of_links_are_headings(path):
    for page, anchor in re.findall(r'\]\((?!https?:)([^)#\s]*\.md)?#([^)\s]+)\)', path.read_text()):
        target = (path.parent / page if page else path).read_text()
        headings = re.findall(r'^#+ (.+)$', target, re.M)
        slugs = {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}
        assert anchor in slugs, f'{page}#{anchor}'


@with_each_text
def test_named_files_and_targets_exist(path):
    text, files = path.read_text(), set(tracked_files())
    known = files | {str(parent) for name in files for parent in Path(name).parents}
    named = set(re.findall(r'(?<![\w./])((?:tools|configs|mmws|docs|tests|requirements|examples)/[\w./+-]*\w)', text))
    missing = named - known - OF_TOOLKITS  # journeys.md leaves out tests/
    assert [name for name in missing if f'tests/{name}' not in files] == []
    targets = set(re.findall(r'^([\w-]+):', (REPOSITORY / 'Makefile').read_text(), re.M)) | {'demo', 'demo-seg'}
    assert sorted(set(re.findall(r'`make ([a-z][\w-]*)', text)) - targets) == []


def test_files_that_other_texts_name_exist():
    """Error messages, configs, the changelog and templates name pages; a page that moves must take them along."""
    sources = [name for name in tracked_files() if re.match(
        r'(mmws|tools|configs|\.github|requirements)/.*\.(py|ya?ml|sh|md)$|\w+\.md$|Makefile', name)]
    named = {page for name in sources
             for page in re.findall(r'docs/[\w/]+\.md', (REPOSITORY / name).read_text())}
    assert len(named) > 8
    assert not [name for name in named if not (REPOSITORY / name).exists()]


@with_each_text
def test_python_can_be_parsed_and_examples_print_what_they_say(path):
    for block in blocks(path, 'python'):
        ast.parse(block)
    for block in blocks(path, 'pycon'):
        test = doctest.DocTestParser().get_doctest(block, {}, path.name, None, None)
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        assert runner.run(test).failed == 0


def test_the_lines_of_the_readme_convert_a_network(capsys):
    lines, = blocks(REPOSITORY / 'README.md', 'python')
    assert len(lines.splitlines()) == 3
    exec(lines, {'model': torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))})
    assert 'standardized  0' in capsys.readouterr().out


def test_the_drawn_network_is_the_converted_one():
    source = re.search(r'(>>> class Net.*?)>>> print', blocks(DOCS / 'placement.md', 'pycon')[0], re.S)[1]
    scope: dict = {'nn': torch.nn, 'torch': torch}
    exec(re.sub(r'^(>>>|\.\.\.) ?', '', source, flags=re.M), scope)
    report = mmws.convert_(scope['Net']())
    drawn = re.findall(r'class="(\w+)" [^>]*rx="\d+"/><text[^>]*>(\w+)<', (DOCS / 'placement.svg').read_text())
    assert [name for kind, name in drawn if kind == 'ws'] == report.converted
    assert {name for kind, name in drawn if kind == 'plain'} == set(report.skipped)
    assert {name for kind, name in drawn if kind == 'norm'} == set(report.norms)


def test_the_options_and_their_defaults_are_those_of_the_code():
    rows = dict(re.findall(r'^\| `(\w+)` \| `?(.*?)`? \|', (DOCS / 'options.md').read_text(), re.M))
    for option in fields(mmws.Options):
        expected = list(option.default) if isinstance(option.default, tuple) else option.default
        assert ast.literal_eval(rows[option.name]) == expected


def test_the_zoo_has_every_config_with_its_results():
    text = (DOCS / 'models.md').read_text()
    rows = {row.split('`')[1]: row for row in re.findall(r'^\| `.*\.py`.*', text, re.M)}
    models = yaml.safe_load((REPOSITORY / 'configs' / 'metafile.yml').read_text())['Models']
    assert rows.keys() == {model['Config'][len('configs/'):] for model in models}
    for model in models:
        row, metadata = rows[model['Config'][len('configs/'):]], model['Metadata']
        results = [value for result in model.get('Results', ()) for value in result['Metrics'].values()]
        assert set(results) <= {float(number) for number in re.findall(r'\d+\.\d+', row)}, row
        maker = metadata.get('Results By', 'no result')
        assert ('authors' if 'authors' in maker else maker) in row


def test_the_tables_of_starts_have_the_measured_numbers():
    page, folder = (DOCS / 'pretrained.md').read_text(), DOCS / 'demos'
    measured = json.loads((folder / 'digits_transplants.json').read_text())
    for result in measured:
        box, mask = (result['metrics'][f'coco/{kind}_mAP'] for kind in ('bbox', 'segm'))
        assert f'| {result["form"]} | {result["distance"]} | {box} | {mask} |' in page
    found = {result['form']: f'{result["metrics"]["coco/bbox_mAP"]:.3f}' for result in measured}
    after = {name: f'{json.loads((folder / f"digits_from_{name}.json").read_text())["box_ap"]:.3f}'
             for name in ('transplant', 'distilled', 'scratch', 'bn')}
    whole = json.loads((folder / 'digits_gnws.json').read_text())
    fitted, distilled = (f'{json.loads((folder / f"digits_{name}.json").read_text())["coco/bbox_mAP"]:.3f}'
                         for name in ('transplanted', 'distilled'))
    rows = [f'`tools/transplant.py` | {fitted} | {after["transplant"]}',
            f'`tools/transplant.py --distill 400` | {distilled} | {after["distilled"]}',
            f'weights by name | {found["weights by name"]} | ',
            f'from scratch | | {after["scratch"]} | {whole["box_ap"]}',
            f'the BatchNorm network, not converted | {found["the BatchNorm network"]} | {after["bn"]}']
    assert not [row for row in rows if f'| {row}' not in page]


def test_the_versions_that_the_pages_name_are_those_of_the_package_and_of_ci():
    metadata = (REPOSITORY / 'pyproject.toml').read_text()
    readme, install = (REPOSITORY / 'README.md').read_text(), (DOCS / 'install.md').read_text()
    for name in ('torch', 'mmdet', 'mmsegmentation', 'mmpretrain'):
        bound = re.search(rf'"{name}>=([\w.]+)', metadata)[1]
        assert f'{name} >= {bound}' in readme
    assert f'torch >= {MINIMUM_TORCH}' in install
    jobs = yaml.safe_load((REPOSITORY / '.github' / 'workflows' / 'test.yml').read_text())['jobs']
    left_out = set(stacks.STACKS) - {job['stack'] for job in jobs['test']['strategy']['matrix']['include']}
    assert f'runs them in five of the six: all but `{left_out.pop()}`' in ' '.join(install.split())
    assert not left_out


def test_the_pages_say_what_was_not_run():
    not_run = '**Not run**' in (DOCS / 'gpu.md').read_text()
    for name in ('limits', 'speed'):
        assert ('not been run' in ' '.join((DOCS / f'{name}.md').read_text().split())) == not_run
    sections = re.findall(r'^## (\w+)\n(.*?)(?=^## |\Z)', (DOCS / 'compatibility.md').read_text(), re.M | re.S)
    tested = [name for name, section in sections if 'needs mmdeploy' not in section]
    assert f'The test runs in the environment `{tested[0]}`' in ' '.join((DOCS / 'deployment.md').read_text().split())
    assert len(tested) == 1


def test_the_citations_agree():
    page = (DOCS / 'citing.md').read_text()
    citation = yaml.safe_load((REPOSITORY / 'CITATION.cff').read_text())
    assert f'version = {{{citation["version"]}}}' in page
    for title in (citation['title'], *(reference['title'] for reference in citation['references'])):
        assert f'title = {{{title}}}' in page


@pytest.mark.parametrize(('name', 'row'), [
    ('nuclei_gnws', '| GN+WS | {minutes} min | {box_ap:.3f} | {mask_ap:.3f} | |'),
    ('nuclei_bn', '| BN | {minutes} min | {box_ap:.3f} | {mask_ap:.3f} | |'),
    ('digits_gnws',
     "| GroupNorm + WS: `type='mmws.MaskRCNN'` | {minutes} min | **{box_ap:.3f}** | **{mask_ap:.3f}** |"),
    ('digits_bn', '| BatchNorm: the same with `--cfg-options model.type=MaskRCNN` | {minutes} min | {box_ap:.3f} '
                  '| {mask_ap:.3f} |'),
    ('camvid_gnws', '| GN+WS | {minutes} min | | | {miou:.3f} |'),
    ('camvid_bn', '| BN | {minutes} min | | | {miou:.3f} |')])
def test_the_table_of_the_demos_has_the_numbers_of_their_summaries(name, row):
    summary = json.loads((DOCS / 'demos' / f'{name}.json').read_text())
    minutes = round(summary['train_seconds'] / 60)
    assert row.format(**summary, minutes=minutes) in (DOCS / 'evidence.md').read_text()
    if name == 'digits_gnws':
        for page in (REPOSITORY / 'README.md', DOCS / 'quickstart.md'):
            assert f'(training alone: {minutes} min on' in page.read_text()
    index = yaml.safe_load((REPOSITORY / 'configs' / 'metafile.yml').read_text())
    listed = {key.replace(' ', '_').lower(): value for model in index['Models']
              if model['Name'].endswith(f'r18_{name.partition("_")[2]}_{name.partition("_")[0]}')
              and ('mask' in model['Name']) == ('mask_ap' in summary)
              for result in model['Results'] for key, value in result['Metrics'].items()}
    assert listed == {key: summary[key] for key in listed}
    assert bool(listed) == name.endswith('_gnws')
