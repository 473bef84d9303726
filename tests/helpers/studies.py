"""Write a study with a single task to a file."""

import yaml

from tests.helpers.commands import REPOSITORY

STUDIES = [REPOSITORY / 'configs' / 'study' / f'{name}.yaml' for name in ('study', 'digits')]
TASK = {'config': 'detection.py', 'metric': 'coco/bbox_mAP', 'label': 'box AP', 'out_of': 1, 'images': 40, 'warm_up': 4,
        'seconds': 9}


def write_study(folder, task=(), part=(), **study):
    part = {'methods': ['GN'], 'rates': [0.1, 0.2], **dict(part)}
    content = {'seeds': [1], 'rate_seed': 0, 'methods': {'GN': {'weight': 'plain'}},
               'tasks': {'detection': {**TASK, 'parts': [part], **dict(task)}}, **study}
    path = folder / 'study.yaml'
    path.write_text(yaml.safe_dump(content))
    return path
