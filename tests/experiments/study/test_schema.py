import pytest
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmws.errors import WSError
from mmws.experiments.study.plan import plan
from mmws.experiments.study.read import read_study
from mmws.experiments.study.run import config_of
from mmws.experiments.study.schema import check_task, choose_tasks, shorten
from mmws.layers.conv import WeightStandardized
from tests.helpers.commands import REPOSITORY
from tests.helpers.pairs import pairs
from tests.helpers.studies import STUDIES, write_study


@pytest.mark.parametrize(('change', 'message'), [
    ({'sedes': [1]}, r"study.yaml: unknown key 'sedes': did you mean 'seeds'"),
    ({'methods': {'GN': 'WS'}}, r"methods.GN: expected ws options as in \{norm: GN\}, got 'WS'"),
    ({'tasks': {'a': {'config': 'x'}}}, 'tasks.a: missing 7 required'),
    ({'tasks': {'a': 3}}, "tasks.a: expected a mapping with the keys name, config, .*, got 3"),
    ({'part': {'methods': ['BN']}}, "tasks.detection: unknown method 'BN': expected one of 'GN'"),
    ({'part': {'schedules': ['cosine']}}, "unknown schedule 'cosine': expected one of 'one-cycle', 'step'"),
    ({'tasks': []}, r'study.yaml: tasks: expected a mapping of names to tasks, got \[\]'),
    ({'seeds': 3}, r'study.yaml: seeds: expected a list, each an integer, got 3'),
    ({'seeds': [0.5]}, r'study.yaml: seeds: expected a list, each an integer, got \[0.5\]'),
    ({'methods': ['GN']}, r'study.yaml: methods: expected a mapping, got'),
    ({'task': {'images': 'many'}}, "tasks.detection: images: expected an integer, got 'many'"),
    ({'task': {'config': 3}}, 'tasks.detection: config: expected text, got 3'),
    ({'part': {'rates': ['1e-3']}}, r"parts\[0\]: rates: expected a list, each a number, got \['1e-3'\]"),
    ({'quick': {'methods': ['GN'], 'seeds': [1]}}, r"study.yaml: quick: missing 1 required .* 'images'"),
    ({'part': {'rates': []}}, 'no part has rates for GN, step schedule, batch size 1 or less; add candidates'),
])
def test_a_mistake_in_the_file_is_named(tmp_path, change, message):
    with pytest.raises(WSError, match=message):
        read_study(write_study(tmp_path, **change))


def test_a_file_that_is_missing_or_not_yaml_is_named(tmp_path):
    write_study(tmp_path)
    with pytest.raises(WSError, match=r"study .*stdy.yaml not found; in .*: did you mean 'study.yaml'"):
        read_study(tmp_path / 'stdy.yaml')
    (tmp_path / 'bad.yaml').write_text('a: [')
    with pytest.raises(WSError, match=r'bad.yaml is not valid YAML: ParserError: while parsing'):
        read_study(tmp_path / 'bad.yaml')


@pytest.mark.parametrize(('config', 'method', 'message'), [
    ('nope.py', {}, 'task detection: config nope.py not found'),
    ('plain.py', {}, "model.type is 'FasterRCNN'; .* write mmws.FasterRCNN"),
    ('plain.py', {'nrom': 'GN'}, "unknown ws option 'nrom'"),
    (str(STUDIES[0].with_name('detection.py')), {},
     'needs data/study/digits/annotations/train.json, which does not exist'),
])
def test_mistakes_that_fail_every_run_are_found_before_the_first(tmp_path, monkeypatch, config, method, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'plain.py').write_text("model = dict(type='FasterRCNN')\n")
    study = read_study(write_study(tmp_path, methods={'GN': method}, task={'config': config}))
    with pytest.raises(WSError, match=message):
        check_task(study, study.tasks[0])


def test_coco_and_voc_are_planned_and_requested(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    study = read_study('configs/study/coco.yaml')
    runs = plan(study, {})
    assert len({run.name for run in runs}) == len(runs) == 99
    for task, asked in pairs(study.tasks, ('get COCO 2017 from', 'get VOC 2012 from')):
        with pytest.raises(WSError, match=asked):
            check_task(study, task)
    for method, norm in (('BN', nn.BatchNorm2d), ('GN', nn.GroupNorm)):  # the weights it starts from
        run = next(run for run in runs if run.method == method and run.search)
        config = config_of(run, str(tmp_path))
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(config.model)
        assert isinstance(model.neck.lateral_convs[0].norm, norm)
        assert model.backbone.init_cfg['checkpoint'] == run.ws['pretrained']
        assert not any(isinstance(module, WeightStandardized) for module in model.modules())


def test_the_short_form_is_a_part_of_the_study(tmp_path):
    with pytest.raises(WSError, match='the study has no key `quick`'):
        shorten(read_study(write_study(tmp_path)))
    whole = read_study(STUDIES[1])
    quick = shorten(whole)
    assert quick.seeds == (1,)
    for task, full in pairs(quick.tasks, whole.tasks):
        assert task.images == full.images * whole.quick.images
        assert all(len(part.rates) < 2 and set(part.methods) <= set(whole.quick.methods) for part in task.parts)


def test_tasks_are_chosen_with_those_of_their_rates():
    study = read_study(REPOSITORY / 'configs' / 'study' / 'transplant.yaml')
    assert [task.name for task in choose_tasks(study, ['nuclei_same']).tasks] == ['nuclei_other', 'nuclei_same']
    assert [task.name for task in choose_tasks(study, ['digits_other']).tasks] == ['digits_other']
    with pytest.raises(WSError, match=r"--tasks: unknown task 'nuclei'.*nuclei_same"):
        choose_tasks(study, ['nuclei'])
