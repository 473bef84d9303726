"""Run the whole suite of `make test` in random order, with another seed in each run."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

from matrix import IN_PARALLEL

REPOSITORY = Path(__file__).parents[2]


def test_the_suite_passes_in_any_order_with_any_seed(record_property):
    seed = str(random.SystemRandom().randrange(2**31))
    command = [sys.executable, '-m', 'pytest', *IN_PARALLEL, '--random-order', f'--random-order-seed={seed}',
               f'--hypothesis-seed={seed}']
    suite = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, 'MMWS_TEST_SEED': seed, 'OMP_NUM_THREADS': '1'},
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    summary = suite.stdout.rstrip().rpartition('\n')[2].strip('= ')
    record_property('all tests of `make test`, in random order, with other seeds of all random generators',
                    re.sub(r' in [\d.]+s.*', '', summary) + f'; seed {seed}')
    assert suite.returncode == 0, f'seed {seed}\n{suite.stdout[-5000:]}'
