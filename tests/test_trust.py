import importlib.util

from tests.helpers.commands import REPOSITORY

spec = importlib.util.spec_from_file_location('run_trust', REPOSITORY / 'tests' / 'trust' / 'run.py')
run_trust = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_trust)


def test_document_matches_the_results():
    assert (REPOSITORY / 'docs' / 'trust.md').read_text() == run_trust.render(REPOSITORY / 'docs' / 'trust')


def test_each_check_has_results():
    checks = {path.stem[len('test_'):] for path in (REPOSITORY / 'tests' / 'trust').glob('test_*.py')}
    assert {path.stem for path in (REPOSITORY / 'docs' / 'trust').glob('*.json')} == checks


def test_failures_and_skips_are_in_the_document(tmp_path):
    (tmp_path / 'some_part.json').write_text(
        '{"command": "c", "date": "d", "machine": "m", "versions": "v", "tests": ['
        '{"test": "test_a", "outcome": "passed", "why": "", "rows": [["asked", "measured"]]},'
        '{"test": "test_b", "outcome": "failure", "why": "assert 1 == 2", "rows": []}]}')
    text = run_trust.render(tmp_path)
    assert '## Some part' in text
    assert '| asked | measured |\n| test_b | **failure**: assert 1 == 2 |' in text
