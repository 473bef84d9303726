import resource
from pathlib import Path

import pytest

from mmws import WSError
from mmws.files import atomic_write, check_output_folder, read_json


@pytest.mark.parametrize('failure', [KeyboardInterrupt, OSError, WSError])
def test_what_is_written_halfway_leaves_the_old_file_and_no_other(failure, tmp_path):
    (tmp_path / 'x').write_text('the old one')
    with pytest.raises(failure), atomic_write(tmp_path / 'x') as partial:  # noqa: PT012
        partial.write_text('half')
        raise failure
    assert [path.read_text() for path in tmp_path.iterdir()] == ['the old one']


def test_a_disk_that_is_full_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(OSError, match='File too large'), atomic_write(tmp_path / 'x') as partial:
            partial.write_bytes(bytes(2**21))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_folder_need_not_be_there_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_output_folder(Path('a/b/c'))
    assert not list(tmp_path.iterdir())


def test_json_that_is_none_is_named(tmp_path):
    (tmp_path / 'x.json').write_bytes(b'\xff')
    with pytest.raises(WSError, match=r'x\.json is no JSON: '):
        read_json(tmp_path / 'x.json')
