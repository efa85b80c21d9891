"""``python -m benchmarks.study list | run | report``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .plan import STUDIES, Arm, Study

if TYPE_CHECKING:
    from subnets.training import Progress

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "results" / "study"
WORK = ROOT / "runs" / "study"


def main(arguments: list[str] | None = None) -> int:
    """Parses, calls, prints; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="what there is, and what is recorded")
    running = commands.add_parser("run", help="run a study, or one arm of it")
    running.add_argument("names", nargs="+", metavar="STUDY[/ARM]")
    running.add_argument("--cifar10", type=Path, help="the cifar-10-batches-py folder")
    running.add_argument("--imagenette", type=Path, help="the folder with train/ and val/")
    running.add_argument("--seed", type=int, action="append", help="may be repeated; the first of the plan by default")
    running.add_argument("--work", type=Path, default=WORK, help="where unfinished runs lie")
    reporting = commands.add_parser("report", help="write docs/results.md from the records")
    for each in (listing, running):
        each.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    for each in (listing, running, reporting):
        each.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args(arguments)
    if options.command == "list":
        return _list(options.records, options.device)
    if options.command == "report":
        from .results import write

        docs = ROOT / "docs"
        for path in write(options.records, docs / "results.md", docs / "pictures", bundles=ROOT / "bundles"):
            print(path.relative_to(ROOT))
        return 0
    from subnets.errors import GearshiftError

    try:
        return _run(options)
    except GearshiftError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def _list(records: Path, device: str) -> int:
    from .results import read

    for study in STUDIES:
        found = read(records, study, device)
        print(f"{study.name}: {study.question}")
        for arm in study.arms:
            seeds = ", ".join(str(record.seed) for record in found.get(arm.name, [])) or "none"
            print(f"  {study.name}/{arm.name}: {arm.what} (seeds recorded: {seeds})")
    return 0


def _run(options: argparse.Namespace) -> int:
    from backends.runtime import Processor
    from cli._training import checked_device
    from subnets.data import load
    from subnets.errors import InputError
    from subnets.heap import keep_freed_memory

    from .runs import Runner

    keep_freed_memory()
    checked_device(options.device)
    for study, arms in chosen(options.names):
        source = getattr(options, study.data)
        if source is None:
            raise InputError(f"study '{study.name}' needs --{study.data}, the folder of its images")
        precision = study.schedule(options.device).precision
        if options.device == "cpu" and precision == "bf16" and not Processor.here().computes_bf16:
            raise InputError(
                f"study '{study.name}' trains in bf16, in which this processor does not compute: an epoch would take "
                "more than an hour; use one that does (avx512_bf16, amx_bf16), or --device cuda"
            )
        dataset = load(str(source), image_size=study.image_size)
        with _bar() as on_step:
            runner = Runner(
                study,
                dataset,
                records=options.records,
                work=options.work,
                device=options.device,
                on_step=on_step,
            )
            for seed in options.seed or study.seeds[:1]:
                for arm in arms:
                    record = runner.run(arm, seed)
                    shares = ", ".join(f"{each.name} {each.test.value:.2%}" for each in record.subnets)
                    print(f"{study.name}/{arm.name}, seed {seed}: {shares}", flush=True)
    return 0


def chosen(names: list[str]) -> list[tuple[Study, tuple[Arm, ...]]]:
    """The studies and arms of these names.

    Raises:
        InputError: one is unknown.
    """
    from subnets.errors import InputError

    studies = {study.name: study for study in STUDIES}
    found = []
    for name in names:
        study, _, arm = name.partition("/")
        if study not in studies:
            raise InputError(f"study '{study}' is unknown; use one of {', '.join(studies)}")
        arms = {each.name: each for each in studies[study].arms}
        if arm and arm not in arms:
            raise InputError(f"study '{study}' has no arm '{arm}'; it has {', '.join(arms)}")
        found.append((studies[study], (arms[arm],) if arm else studies[study].arms))
    return found


@contextmanager
def _bar() -> Iterator[Callable[[str, Progress], None]]:
    """A progress bar that changes its title with what is being trained."""
    from cli._output import progress

    with progress() as bar:
        task = bar.add_task("starting", total=None)
        title = ""

        def on_step(what: str, state: Progress) -> None:
            nonlocal title
            if what != title:
                title = what
                bar.reset(task)
            text = f"{what}: epoch {state.epoch + 1}/{state.epochs}, loss {state.loss:.3f}"
            bar.update(task, total=state.steps, completed=state.step, description=text)

        yield on_step


if __name__ == "__main__":
    sys.exit(main())
