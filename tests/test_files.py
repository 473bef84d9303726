import re
import resource
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mmws import WSError
from mmws.files import atomic_write, check_input, check_output_folder, read_json, save_figure, write_json
from tests.helpers.commands import REPOSITORY, tracked_files


@pytest.mark.parametrize('failure', [KeyboardInterrupt, OSError, WSError])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(failure, tmp_path):
    (tmp_path / 'x').write_text('the old one')
    with pytest.raises(failure), atomic_write(tmp_path / 'x') as partial:  # noqa: PT012
        partial.write_text('half')
        raise failure
    assert [path.read_text() for path in tmp_path.iterdir()] == ['the old one']


def test_a_url_is_no_input_file():
    with pytest.raises(WSError, match='checkpoint torchvision://resnet50 is a URL, expected a file; download it'):
        check_input('checkpoint', 'torchvision://resnet50')


def test_a_full_disk_leaves_no_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(OSError, match='File too large'), atomic_write(tmp_path / 'x') as partial:
            partial.write_bytes(bytes(2**21))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_the_output_folder_may_not_exist_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_output_folder(Path('a/b/c'))
    assert not list(tmp_path.iterdir())


def test_invalid_json_is_refused_with_its_path(tmp_path):
    (tmp_path / 'x.json').write_bytes(b'\xff')
    with pytest.raises(WSError, match=r'x\.json is not valid JSON: '):
        read_json(tmp_path / 'x.json')


def test_json_reads_back_and_a_failure_keeps_the_old_file(tmp_path):
    write_json(tmp_path / 'x.json', {'a': [1, None]}, indent=1)
    text = (tmp_path / 'x.json').read_text()
    assert text == '{\n "a": [\n  1,\n  null\n ]\n}\n'
    assert read_json(tmp_path / 'x.json') == {'a': [1, None]}
    with pytest.raises(TypeError):
        write_json(tmp_path / 'x.json', print)
    assert [path.read_text() for path in tmp_path.iterdir()] == [text]


def test_a_figure_that_cannot_be_drawn_keeps_the_old_file(tmp_path):
    path = tmp_path / 'x.png'
    save_figure(Figure(), path, dpi=10)
    content = path.read_bytes()
    assert content.startswith(b'\x89PNG')
    figure = Figure()
    figure.subplots().set_title('$\\unknown$')
    with pytest.raises(ValueError, match='unknown'):
        save_figure(figure, path, dpi=10)
    assert [other.read_bytes() for other in tmp_path.iterdir()] == [content]


def test_no_result_is_written_in_place():
    """Each call that writes a file writes the temporary path of ``atomic_write``, except for data sets."""
    calls = [(name, call) for name in tracked_files() if re.match(r'(mmws|tools)/(?!data/).*\.py$', name)
             for call in re.findall(r"[\w.]+\.(?:write_text|write_bytes|savefig|open)\((?:'[wa][^)]*|\w*)",
                                    (REPOSITORY / name).read_text())
             if re.search(r"(text|bytes|savefig)\(|open\('", call)]
    assert len(calls) >= 6
    assert not [call for call in calls if 'partial' not in call[1]]
