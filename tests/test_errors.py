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
        raise WSError(f'picture {index} is\ncorrupt')


@pytest.mark.parametrize(('mistake', 'line'), [
    (lambda: Unreadable()[0], 'error: picture 0 is corrupt'),
    (lambda: Path('nowhere').read_text(), r"error: FileNotFoundError: .*'nowhere'"),
    (lambda: MODELS.build({'type': 'Nowhere'}), 'error: KeyError: Nowhere is not in'),
    (lambda: Runner.from_cfg({'work_dir': 'x'}), 'error: KeyError: model'),
    (lambda: list(DataLoader([1, 'a'], batch_size=2)), 'error: TypeError: '),
    (lambda: list(DataLoader(Unreadable(), num_workers=1)), '^error: corrupt'),
])
def test_a_mistake_of_the_user_gives_one_line(mistake, line):
    with pytest.raises(SystemExit, match=line) as error, one_line_errors():
        mistake()
    assert '\n' not in error.value.code


@pytest.mark.parametrize('kind', [RuntimeError, KeyboardInterrupt, AssertionError])
def test_other_exceptions_keep_their_traceback(kind):
    with pytest.raises(kind), one_line_errors():
        raise kind


def test_an_exception_without_text_gives_its_name():
    assert format_exception(EOFError()) == 'EOFError'
    assert format_exception(WSError('a\n b')) == 'a b'


@pytest.mark.parametrize(('mistake', 'line'), [
    ('{}["no depth"]', 'KeyError: no depth'),
    ('json.loads("[")', 'JSONDecodeError: Expecting value: line 1 column 2 (char 1)')])
def test_an_error_that_an_old_mmengine_raised_again_is_the_original_one(mistake, line):
    """A JSONDecodeError cannot be raised again with a message alone, which is a TypeError."""
    source = f'''
import json
try:
    {mistake}
except Exception as error:
    raise type(error)(f"class `X` in x.py: {{error}}")
'''
    with pytest.raises((KeyError, TypeError)) as raised:
        exec(compile(source, '/site-packages/mmengine/registry/build_functions.py', 'exec'), {})
    assert format_exception(raised.value) == line
