#!/usr/bin/env python3
"""Compare normalization layers at small batch sizes, with several seeds, as defined in a YAML file.

After an interrupt, the same command resumes. Writes OUT/*.json, OUT/*.png and OUT.md.
"""

import argparse
import os
import sys
from itertools import count
from pathlib import Path

try:
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mmws.data.digits import make_digits, make_single_digits
    from mmws.errors import one_line_errors
    from mmws.experiments.benchmark.report import describe_machine
    from mmws.experiments.study.plan import Record, Run, plan
    from mmws.experiments.study.pool import prepare_starts, run_all
    from mmws.experiments.study.read import read_study
    from mmws.experiments.study.report import write_report
    from mmws.experiments.study.results import Results
    from mmws.experiments.study.schema import Study, check_task, choose_tasks, shorten
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: tools/{Path(__file__).name} needs mmws.experiments, which is not in the installed '
                     'package; run it from a checkout of the repository (pip install -e .)'
                     if getattr(error, 'name', '') == 'mmws.experiments' else
                     f'error: {error}; install the missing package (see Install in README.md)') from None

MAKERS = {'digits': make_digits, 'single_digits': make_single_digits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, help='YAML file, for example configs/study/study.yaml')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/study/results'), help='folder for the results')
    parser.add_argument('--quick', action='store_true', help='run the short form, defined by the key `quick`')
    parser.add_argument('--tasks', nargs='+', metavar='NAME', help='run only these tasks of the study')
    parser.add_argument('--report', action='store_true', help='only write the report of the runs that are done')
    parser.add_argument('--processes', type=int, default=os.cpu_count(), help='runs at a time, with one thread each')
    options = parser.parse_args()
    try:
        with one_line_errors():
            study = read_study(options.study)
            study = shorten(study) if options.quick else study
            results = Results(options.out)
            if not options.report:
                run(choose_tasks(study, options.tasks) if options.tasks else study, results, options.processes)
            print(*write_report(study, results), sep='\n')
    except KeyboardInterrupt:
        raise SystemExit('interrupted; run the same command again to resume') from None


def run(study: Study, results: Results, processes: int) -> None:
    """Do the runs that are not done yet, and print a line for each."""
    for kind, arguments in study.data.items():
        MAKERS[kind](**arguments)
    for task in study.tasks:
        check_task(study, task)
    results.check(study)
    runs = plan(study, results.done)
    done = [run for run in runs if run.name in results.done]
    if len(done) == len(runs):
        return
    machine = describe_machine('cuda' if torch.cuda.is_available() else 'cpu',
                               f'{os.cpu_count()} cores, {processes} runs at a time, one thread each')
    results.start({**machine, 'command': ' '.join(['python', *sys.argv])})
    seconds = {task.name: task.seconds for task in study.tasks}
    with Progress(TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  speed_estimate_period=3600, console=Console(soft_wrap=True)) as progress:
        completed = sum(seconds[run.task] for run in done)
        bar = progress.add_task('seconds', total=sum(seconds[run.task] for run in runs), completed=completed)
        finished = count(len(done) + 1)

        def show(run: Run, record: Record) -> None:
            known = plan(study, results.done)  # the search for a learning rate adds runs
            progress.tasks[0].total = sum(seconds[one.task] for one in known)
            progress.advance(bar, seconds[run.task])
            left = progress.tasks[0].time_remaining
            estimate = f', about {left / 60:.0f} min left' if left is not None else ''
            progress.console.print(f'{next(finished)}/{len(known)} {outcome(run, record)}{estimate}', markup=False,
                                   highlight=False)

        prepare_starts(study, results, processes, lambda run: progress.console.print(
            f'{run.task}, seed {run.seed}: BatchNorm network trained', markup=False, highlight=False))
        progress.reset(bar, completed=completed)  # the estimate counts from here, without the BatchNorm networks
        progress.advance(bar, 0)
        run_all(study, results, processes, show)


def outcome(run: Run, record: Record) -> str:
    result = record['message'] if record['metric'] is None else f'{record["metric"]:.3f} in {record["seconds"]:.0f} s'
    return f'{run.name}, rate {run.rate:g}: {record["status"]} {result}'


if __name__ == '__main__':
    main()
