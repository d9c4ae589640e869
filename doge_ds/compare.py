"""`doge-ds compare --config FILE`: proxies, bases and evaluations of several mixtures and seeds, and one report.

Stages are the programs that a user would start by hand, one process each; what is finished is never done again, and a
changed configuration redoes only what depends on it. docs/comparing.md tells how to write a comparison.
"""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from doge_ds.command_line import add_settings, positive
from doge_ds.errors import ConfigError, DogeError, RunError, report

if TYPE_CHECKING:
    from doge_ds.experiments.chains import Comparison
    from doge_ds.experiments.runner import Slots
    from doge_ds.experiments.stages import Stage

_EXAMPLES = """examples:
  doge-ds compare --config ds_configs/experiments/four_mixtures.json --dry_run     what would be run, and where
  doge-ds compare --config my_comparison.json --output runs/mine --parallel 2
  doge-ds compare --config a.json b.json --output runs/mine                  the stages that both have are run once
  doge-ds compare --config a.json --set seeds=[0] proxy_settings.training.steps=50 --only proxies

a.json, at its shortest:
  {"proxy": "my_proxy.json", "base": "my_base.json", "seeds": [0, 1, 2],
   "mixtures": {"uniform": "uniform", "doge": {"proxy": {}}, "mu 0.1": {"proxy": {"doge.mu": 0.1}}}}

For each mixture and seed: a proxy where the mixture is learned, a base, its evaluation. Writes
FOLDER/<name>/summary.json and report.html, of several configurations FOLDER/report.html too. The same command goes on
where it was stopped. Exit status: 0 all done, 1 a stage failed or a page could not be made, 2 the input is wrong,
75 stopped, and what ran has saved. docs/comparing.md says more."""

ONLY = {"references": "reference", "proxies": "proxy", "bases": "base", "evaluations": "eval"}
DEFAULT_FOLDER = Path("runs/compare")
LOCK = ".compare.lock"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doge-ds compare`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--config", dest="configs", type=Path, nargs="+", required=True, metavar="FILE", help="comparisons, JSON"
    )
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_FOLDER, metavar="FOLDER", help=f"by default {DEFAULT_FOLDER}"
    )
    add_settings(parser, "settings that replace those of all comparisons, like seeds=[0]")
    parser.add_argument("--parallel", type=positive, default=1, metavar="N", help="stages at once (default 1)")
    parser.add_argument("--ranks", type=positive, default=1, metavar="N", help="ranks of each stage (default 1)")
    parser.add_argument(
        "--only", nargs="+", choices=list(ONLY), metavar="STAGES", help=f"and what they read: {', '.join(ONLY)}"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry_run", action="store_true", help="print the stages, done and to do; run nothing")
    what.add_argument("--summarize", action="store_true", help="run nothing; summaries and report of what is done")


def run(arguments: argparse.Namespace) -> int:
    """`doge-ds compare`: check, run, summarize. Raises DogeError where the input is wrong, before anything is run."""
    check_names(arguments.configs)
    # torch and DeepSpeed take seconds to load, and DeepSpeed's log goes to what is stdout while it is loaded.
    with contextlib.redirect_stdout(sys.stderr):
        from doge_ds.experiments.chains import Planner
        from doge_ds.experiments.runner import Runner
        from doge_ds.experiments.stages import check_programs
        from doge_ds.training.launch import quieten_libraries
        from doge_ds.training.run_directory import refuse_pattern

    quieten_libraries()
    refuse_pattern(arguments.output)
    slots = choose_slots(arguments.parallel, arguments.ranks)
    planner = Planner(arguments.output, arguments.ranks)
    comparisons = [planner.add(path, arguments.settings) for path in arguments.configs]
    stages = chosen(list(planner.stages.values()), arguments.only)
    check_programs(stages)
    if arguments.dry_run:
        print(table(stages, slots))
        return 0
    if arguments.summarize:
        finished = sum(stage.is_finished for stage in planner.stages.values())
        if not finished:
            raise RunError(str(arguments.output), "has no finished stage of these comparisons", "name their --output")
        print(f"{finished} of {len(planner.stages)} stages are finished")
        return write_summaries(comparisons, arguments.output, None)  # the stages may have run anywhere
    with locked(arguments.output):
        check_pages(comparisons, arguments.output)
        outcome = Runner(stages, slots).run()
        for stage in outcome.failed:
            print(f"error: {stage.name} failed; see {stage.log}", file=sys.stderr)
        if outcome.waiting and not outcome.was_stopped:
            print(f"{len(outcome.waiting)} stages that depend on others were not run", file=sys.stderr)
        status = write_summaries(comparisons, arguments.output, slots.devices)
        if outcome.was_stopped:
            print("stopped; the same command goes on", file=sys.stderr)
    return outcome.status or status


def check_names(configs: Sequence[Path]) -> None:
    """Raises ConfigError where two comparisons, or one and the stages, would share a folder."""
    names = [path.stem for path in configs]
    for path in configs:
        if names.count(path.stem) > 1 or path.stem in ("stages", "report.html", LOCK, ""):
            problem = f"FOLDER/{path.stem} would hold something else too"
            raise ConfigError(f"--config {path}", problem, "give the file another name")


def choose_slots(parallel: int, ranks: int) -> "Slots":
    """Where stages run. Raises ConfigError for more ranks at once than GPUs, where there are GPUs."""
    from doge_ds.experiments.runner import Slots, gpus_of_this_machine

    gpus = gpus_of_this_machine(os.environ)
    if gpus and parallel * ranks > len(gpus):
        problem = f"{parallel} stages of {ranks} ranks need {parallel * ranks} GPUs, and there are {len(gpus)}"
        raise ConfigError(f"--parallel {parallel}", problem, "give less, or fewer --ranks")
    return Slots(parallel, ranks, gpus)


def chosen(stages: "Sequence[Stage]", only: Sequence[str] | None) -> "list[Stage]":
    """Stages of these kinds, and all that they read; without `only` all."""
    kinds = {ONLY[name] for name in only} if only else set(ONLY.values())
    wanted: set[str] = set()
    for stage in reversed(stages):
        if stage.kind in kinds or stage.identity in wanted:
            wanted |= {stage.identity, *stage.after}
    return [stage for stage in stages if stage.identity in wanted]


def table(stages: "Sequence[Stage]", slots: "Slots") -> str:
    """What `--dry_run` prints: each stage, its directory, and if it is to do its command."""
    width = max((len(stage.name) for stage in stages), default=0)
    lines = []
    for stage in stages:
        lines.append(f"{'done ' if stage.is_finished else 'to do'}  {stage.name:<{width}}  {stage.directory}")
        if not stage.is_finished:
            lines.append(f"         {shlex.join(slots.command(stage, 0))}")
    left = [stage for stage in stages if not stage.is_finished]
    lines.append(f"{len(left)} of {len(stages)} stages to do")
    flops = [stage.flops for stage in left if stage.kind != "eval"]
    if flops and None not in flops:
        lines[-1] += f", {sum(filter(None, flops)):.3g} floating-point operations in training"
    return "\n".join(lines)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other comparisons out of the folder. Raises RunError where one is at work, ConfigError where it is none."""
    lock = FileLock(folder / LOCK)
    try:
        (folder / "stages").mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(str(folder), "is being written by another doge-ds compare", "wait for its end") from None
    except OSError as error:
        raise cannot_be_written(folder, error) from None
    try:
        yield
    finally:
        lock.release()


def cannot_be_written(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"--output {folder}", f"cannot be written ({error.strerror})", "name a folder that is yours")


def pages(comparisons: "Sequence[Comparison]", folder: Path) -> dict[Path, list[Path]]:
    """The summaries that each page is made of: one page for each comparison, and one for several."""
    summaries = [folder / comparison.name / "summary.json" for comparison in comparisons]
    found = {summary.with_name("report.html"): [summary] for summary in summaries}
    return found | ({folder / "report.html": summaries} if len(summaries) > 1 else {})


def check_pages(comparisons: "Sequence[Comparison]", folder: Path) -> None:
    """Raises ConfigError, before hours of work, where a page's place has something that is no report of ours."""
    from doge_ds.reporting.page_files import check_output

    for page in pages(comparisons, folder):
        if page.parent.exists():
            check_output(page, str(page))


def write_summaries(comparisons: "Sequence[Comparison]", folder: Path, devices: str | None) -> int:
    """FOLDER/<name>/summary.json and report.html of each; of several comparisons FOLDER/report.html too.

    A page that cannot be made, like one above 2 MB, is said and keeps no other from being written.

    Args:
        devices: what the stages ran on; None where that is not known.

    Returns:
        the exit status: 1 where a page could not be made.
    """
    from doge_ds.experiments.summary import summarize
    from doge_ds.json_files import read_json_object, write_json
    from doge_ds.reporting.comparison_page import write_comparison_page

    written = []
    for comparison in comparisons:
        place = folder / comparison.name
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_be_written(folder, error) from None
        file = place / "summary.json"
        summary = summarize(comparison, folder, devices)
        if devices is None:  # what the earlier one says
            with contextlib.suppress(DogeError):
                summary["machine"] = read_json_object(file).get("machine", summary["machine"])
        write_json(file, summary)
        written.append(file)
    made = []
    wanted = pages(comparisons, folder)
    for page, summaries in wanted.items():
        try:
            write_comparison_page(summaries, page)
            made.append(page)
        except DogeError as error:
            report(error)  # nothing is lost: `--summarize` makes the pages again
    print("\n".join(f"written: {path}" for path in [*written, *made]))
    return 0 if len(made) == len(wanted) else 1
