from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from torch import nn

from mmws import convert_
from mmws.cli.conversion_report import ConversionReport
from mmws.cli.report_page import LEGEND, reason_class, write_page
from tests.helpers.commands import REPOSITORY, tool, tool_error

CONFIG = str(REPOSITORY / 'configs' / 'mask_rcnn_r50_gnws.py')


class Page(HTMLParser):
    """Tags in order, checked for their ends; leaves of the tree by class; links to other files."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.leaves: dict[str, list[str]] = {}
        self.links: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[name] for name in ('src', 'href') if name in values]
        if 'leaf' in values.get('class', ''):
            self.leaves.setdefault(values['class'].split()[1], []).append(values.get('title', ''))
        if tag not in ('meta', 'input'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_tool_writes_one_small_file_with_every_convolution(tmp_path):
    written = tool('report.py', CONFIG, '--html', 'out.html', folder=tmp_path)
    assert written.returncode == 0, written.stderr
    assert 'wrote out.html' in written.stderr
    text = (tmp_path / 'out.html').read_text()
    assert len(text) < 1_000_000
    page = Page(text)
    assert page.links == []
    convs = page.leaves['ws'] + page.leaves['plain']
    assert len(convs) == len(set(convs)) == 74  # 53 in the backbone, 8 in the neck, 13 in the heads
    assert 'backbone.layer1.0.conv1' in page.leaves['ws']
    assert 'rpn_head.rpn_cls' in page.leaves['plain']
    assert 'no norm follows: the output leaves the network' in text


def test_names_and_reasons_are_escaped_and_shared_modules_have_their_reason(tmp_path):
    net = nn.Sequential(nn.Sequential(shared := nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), nn.Sequential(shared))
    net.add_module('a<b', nn.Conv2d(3, 3, 1))
    with pytest.warns(UserWarning, match='nothing was standardized'):
        report = convert_(net, exclude=['a<b'])
    report.functions['net.py:3 in <lambda>'] = ['conv2d, weight: computed']
    write_page(ConversionReport(net, report, {'model': 'Net of <x>', 'convolutions': 2}), tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    assert Page(text).leaves == {'plain': ['0.0', '0.0', 'a<b', ''], 'norm': ['0.1']}
    assert '<h1>Net of &lt;x&gt;</h1>' in text
    assert 'conv2d, weight: computed, called at net.py:3 in &lt;lambda&gt;' in text
    assert text.count('not only norms follow: conv2d') == 2


def test_the_form_of_the_weights_and_blocks_with_only_norms_are_shown(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3)))
    write_page(ConversionReport(net, convert_(net, weight='wn'), {'model': 'Net'}), tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    assert Page(text).leaves == {'ws': ['0'], 'norm': ['1.0']}
    assert '<i>weight-normalized</i>' in text


def luminance(colour: str) -> float:
    parts = [int(colour[start:start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


def test_convolutions_are_coloured_by_the_kind_of_their_reason_with_a_legend(tmp_path):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
            self.single, self.norm2 = nn.Conv2d(3, 3, 1, groups=3), nn.BatchNorm2d(3)
            self.out, self.norm3 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.conv(x)
            return self.last(self.norm3(self.out(self.norm2(self.single(x + self.norm(x))))))

    with pytest.warns(UserWarning, match='nothing was standardized'):
        report = convert_(net := Both(), exclude=['out'])
    write_page(ConversionReport(net, report, {'model': 'Net'}), tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    found = {name: kind for kind, name in re.findall(r'<li class="leaf plain ([\w-]+)" title="(\w+)">', text)}
    assert found == {'conv': 'not-only', 'last': 'no-norm', 'single': 'cannot', 'out': 'option'}
    assert dict(re.findall(r'<li class="([\w-]+)"><i>&#9632;</i> (.*?)</li>', text)) == LEGEND
    assert [name for name in LEGEND if f'.{name} i {{ color: var(--{name}); }}' not in text] == []
    themes = re.findall(r':root {(.*?)}', text, re.S)
    light, dark = (dict(re.findall(r'--([\w-]+): (#\w{6});', theme)) for theme in themes)
    for colours, background in ((light, '#ffffff'), (dark, '#121212')):  # chromium's of both themes
        assert colours.keys() == LEGEND.keys()
        assert len(set(colours.values())) == len(LEGEND)
        for colour in colours.values():
            darker, lighter = sorted(map(luminance, (colour, background)))
            assert (lighter + 0.05) / (darker + 0.05) > 4.5, colour  # the least contrast of WCAG 2, level AA


@pytest.mark.parametrize(('reason', 'kind'), [
    ("ws option weight='plain'", 'option'), ('not in include=[]', 'option'),
    ('a LayerNorm follows: standardized with include', 'option'), ('weight read by reshape()', 'cannot')])
def test_other_reasons_have_a_kind(reason, kind):
    assert reason_class(reason) == kind


def test_a_wrong_name_is_one_line_before_the_work(tmp_path):
    assert tool_error('report.py', CONFIG, '--html', f'{tmp_path}/out.txt') == (
        f'error: {tmp_path}/out.txt: expected a name that ends in .html')
