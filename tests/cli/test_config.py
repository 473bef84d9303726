import logging

from mmengine.logging import print_log

from mmws.cli.config import silence


def test_what_is_told_after_a_silence_is_heard(log):
    with silence():
        print_log('in it', 'current', logging.WARNING)
    print_log('after it', 'current', logging.WARNING)
    assert log == ['WARNING after it']
