import logging

from mmengine.logging import print_log

from mmws.cli.config import silence


def test_messages_after_silence_are_logged(log):
    with silence():
        print_log('inside', 'current', logging.WARNING)
    print_log('after', 'current', logging.WARNING)
    assert log == ['WARNING after']
