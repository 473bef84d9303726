from pathlib import Path

import pytest
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmws import WSError
from mmws.errors import format_exception, one_line_errors


class Unreadable:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise WSError(f'picture {index} is\nno picture')


@pytest.mark.parametrize(('mistake', 'line'), [
    (lambda: Unreadable()[0], 'error: picture 0 is no picture'),
    (lambda: Path('nowhere').read_text(), r"error: FileNotFoundError: .*'nowhere'"),
    (lambda: MODELS.build({'type': 'Nowhere'}), 'error: KeyError: Nowhere is not in'),
    (lambda: Runner.from_cfg({'work_dir': 'x'}), 'error: KeyError: model'),
    (lambda: list(DataLoader([1, 'a'], batch_size=2)), 'error: TypeError: '),
    (lambda: list(DataLoader(Unreadable(), num_workers=1)), '^error: no picture'),
])
def test_what_a_user_can_correct_ends_in_one_line(mistake, line):
    with pytest.raises(SystemExit, match=line) as error, one_line_errors():
        mistake()
    assert '\n' not in error.value.code


@pytest.mark.parametrize('kind', [RuntimeError, KeyboardInterrupt, AssertionError])
def test_anything_else_keeps_its_traceback(kind):
    with pytest.raises(kind), one_line_errors():
        raise kind


def test_what_has_no_text_is_told_by_its_name():
    assert format_exception(EOFError()) == 'EOFError'
    assert format_exception(WSError('a\n b')) == 'a b'
