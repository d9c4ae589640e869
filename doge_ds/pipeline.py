"""Submit the whole chain to Slurm: text to tokens, proxy, two base models, their evaluation, report.

    slurm/pipeline.sh my_proxy.json my_base.json --output runs/x --sbatch "--gpus-per-node=4 --cpus-per-gpu=8"
    slurm/pipeline.sh my_proxy.json my_base.json --recipe recipe.json --prepare_tasks 64 --sbatch "--account=me" \\
        --sbatch_prepare "--partition=cpu --cpus-per-task=16" --sbatch_proxy "--nodes=2 --gpus-per-node=4"

Each stage is a job, or an array of jobs, that starts when the ones before it have succeeded; where one fails, Slurm
cancels those that wait for it. The two bases, one on the uniform mixture and one on the proxy's, train side by side.
Everything that can be checked is checked before the first job is submitted. Submitted again, the chain goes on: what is
trained continues or says that it is finished, and what is prepared or measured already is left out.

    slurm/pipeline.sh --comparison my_comparison.json --output runs/mine --sbatch "--gpus-per-node=4 --cpus-per-gpu=8"

does the same with all stages of a comparison (`doge-ds compare --help`): each is a job that waits for what it reads,
and the last one writes the summary and its report.

FOLDER gets proxy/, base_uniform/, base_doge/, report.html, the jobs' output in logs/, and pipeline.json: the stages,
their job numbers and the commands that submitted them; of a comparison the runs are in stages/.
"""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from doge_ds.command_line import Parser, add_settings, natural, positive
from doge_ds.config import BaseConfig, ProxyConfig, load_config
from doge_ds.data.reading.recipes import read_recipe
from doge_ds.data.tokens import TokenStore
from doge_ds.errors import ConfigError, DogeError, report
from doge_ds.mixture import Mixture
from doge_ds.slurm_stages import Stage, print_commands, refuse_while_queued, submit, submitted_before

KINDS = ("prepare", "proxy", "base", "eval", "report")
SBATCH_OPTIONS = ("--sbatch", *(f"--sbatch_{kind}" for kind in KINDS))
# What the chain says itself. A short option may have its value right behind it.
OURS = ("--dependency", "--array", "--wrap", "--parsable", "--test-only", "--wait", "-d", "-a", "-W")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, then submit or print; the exit status. A user's mistake is one line."""
    try:
        options = read_arguments(sys.argv[1:] if arguments is None else arguments)
        if options.comparison:
            return _compare(options)
        folder = options.output or Path("runs") / f"{options.proxy.stem}_pipeline"
        chain = stages(options, folder)
        if options.dry_run:
            print_commands(chain, folder)
        else:
            refuse_while_queued(folder)
            submit(chain, folder)
    except DogeError as error:
        return report(error)
    return 0


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises ConfigError for those that cannot be understood, or name neither a chain nor a comparison."""
    options = _parser().parse_args(_joined(arguments))
    if options.base is None and not options.comparison:
        raise ConfigError("command line", "names no PROXY.json and BASE.json, nor --comparison", "see --help")
    return options


def _compare(options: argparse.Namespace) -> int:
    """The stages of comparisons as jobs. Raises DogeError where they, or options that belong to a chain, are wrong."""
    unused = ("proxy", "recipe", "set_proxy", "set_base", "suite", "tasks", "num_fewshot", "data_root")
    for name in unused:
        if getattr(options, name):
            where = "PROXY.json" if name == "proxy" else f"--{name}"
            raise ConfigError(where, "does not go with --comparison, which says it itself", "leave it out")
    with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed logs while it is loaded, which takes seconds
        from doge_ds.compare import locked
        from doge_ds.comparison_jobs import plan_comparisons, write_what_jobs_read
        from doge_ds.training.launch import quieten_libraries

    quieten_libraries()
    folder = options.output or Path("runs/compare")
    wanted = {kind: _sbatch_options(options, kind) for kind in KINDS}
    plan = plan_comparisons(options.comparison, options.settings, folder, options.ranks, wanted)
    if options.dry_run:
        print_commands(plan.chain, folder)
    else:
        refuse_while_queued(folder)
        with locked(folder):  # `doge-ds compare` is not at work there
            write_what_jobs_read(plan)
            submit(plan.chain, folder)
    return 0


def stages(options: argparse.Namespace, folder: Path) -> list[Stage]:
    """Check all input and lay out the chain, in order.

    Raises:
        DogeError: a configuration, the recipe, the store or an option cannot be used.
    """
    proxy = load_config(ProxyConfig, options.proxy, options.set_proxy)
    base = load_config(BaseConfig, options.base, options.set_base)
    wanted = {kind: _sbatch_options(options, kind) for kind in KINDS}
    measure = _eval_options(options)
    chain = _prepare(options, proxy, base, wanted["prepare"])
    if all(stage.result for stage in chain):
        check_domains(proxy, base)
    run = folder / "proxy"
    train = ["slurm/proxy.sh", str(options.proxy), *_set(options.set_proxy), "--output", str(run)]
    chain.append(Stage("proxy", train, [stage.name for stage in chain[-1:]], wanted["proxy"]))
    bases = {name: folder / f"base_{name}" for name in ("uniform", "doge")}
    for name, base_run in bases.items():
        mixture = name if name == "uniform" else str(run / "mixture.json")
        train = ["slurm/base.sh", str(options.base), "--mixture", mixture, *_set(options.set_base)]
        chain.append(Stage(f"base-{name}", [*train, "--output", str(base_run)], ["proxy"], wanted["base"]))
    for name, base_run in bases.items():
        command = ["slurm/eval.sh", "--model", str(base_run), "--data", base.data.path, *measure]
        result = base_run / "results.json" if _is_measured(command, base_run, folder) else None
        chain.append(Stage(f"eval-{name}", command, [f"base-{name}"], wanted["eval"], result=result))
    write = ["slurm/verb.sh", "report", str(run), *map(str, bases.values()), "-o", str(folder / "report.html")]
    after = [stage.name for stage in chain if stage.name.startswith(("base", "eval"))]
    return [*chain, Stage("report", write, after, wanted["report"])]


def _prepare(options: argparse.Namespace, proxy: ProxyConfig, base: BaseConfig, wanted: list[str]) -> list[Stage]:
    """The stages that make the store, where a recipe is given. Raises DogeError."""
    if options.recipe is None:
        return []
    recipe, store = read_recipe(options.recipe), proxy.data.path
    if base.data.path != store:
        problem = f"makes one store, and the proxy reads {store}, the base {base.data.path}"
        raise ConfigError(f"--recipe {options.recipe}", problem, "set data.path to the same in both configurations")
    if recipe.tokenizer is None:
        problem = "is missing, and jobs that share the work cannot train one"
        raise ConfigError(f"{options.recipe}: tokenizer", problem, "train it with `doge-ds tokenizer`, and name it")
    command = ["slurm/prepare.sh", str(options.recipe), "--output", store]
    result = Path(store) if Path(store).exists() else None
    shares = Stage("prepare", command, [], wanted, options.prepare_tasks, result)
    return [shares, Stage("merge", command, ["prepare"], wanted, result=result)]


def check_domains(proxy: ProxyConfig, base: BaseConfig) -> None:
    """Refuse now what the base would refuse of the mixture when the proxy has been trained.

    Raises:
        DogeError: a store cannot be read, or the base's train domains are not those that the proxy learns weights of.
    """
    learned_from, trained_on = TokenStore(proxy.data.path), TokenStore(base.data.path)
    targets = proxy.target if isinstance(proxy.target, list) else []
    domains = proxy.data.train_domains or [name for name in learned_from.domains if name not in targets]
    if domains:
        names = base.data.train_domains or trained_on.domains
        Mixture.uniform(domains).over(names, "data.train_domains of the base: the mixture that the proxy will learn")


def _is_measured(command: list[str], run: Path, folder: Path) -> bool:
    """Whether results are there, of this model, and were asked for by the same command."""
    results, model = run / "results.json", run / "hf/config.json"
    if not (results.exists() and model.exists() and results.stat().st_mtime >= model.stat().st_mtime):
        return False
    return any(before.get("runs") == command for before in submitted_before(folder))


def _sbatch_options(options: argparse.Namespace, kind: str) -> list[str]:
    """sbatch's options for all stages, then this stage's, which win. Raises ConfigError for one that is ours."""
    words: list[str] = []
    for name in ("sbatch", f"sbatch_{kind}"):
        where = f"--{name}"
        for text in getattr(options, name):
            try:
                words += (found := shlex.split(text))
            except ValueError as error:
                raise ConfigError(where, f"{text!r} cannot be split into words ({error})", "mend its quotes") from None
            for word in found:
                option = word.partition("=")[0] if word.startswith("--") else word[:2]
                if option in OURS:
                    raise ConfigError(where, f"{word!r} is what the pipeline decides itself", "leave it out")
    return words


def _set(settings: Sequence[str]) -> list[str]:
    return ["--set", *settings] if settings else []


def _eval_options(options: argparse.Namespace) -> list[str]:
    """eval/run.py's, as they were given. Raises ConfigError for tasks that it would refuse."""
    if names := [*([options.suite] if options.suite else []), *options.tasks]:
        from doge_ds.evaluation.tasks import check_datasets, choose_tasks  # lm-eval takes seconds to load

        check_datasets(choose_tasks(names, None), Path(options.data_root) if options.data_root else None, None)
    words: list[str] = []
    for name in ("suite", "num_fewshot", "data_root"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", str(value)]
    return [*words, *(["--tasks", *options.tasks] if options.tasks else [])]


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--sbatch "--partition=gpu"` as one word: argparse would take the value for an option."""
    found: list[str] = []
    for word in arguments:
        if found and found[-1] in SBATCH_OPTIONS:
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def _parser() -> Parser:
    parser = Parser(
        prog="slurm/pipeline.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("proxy", type=Path, metavar="PROXY.json", nargs="?", help="the proxy's run configuration")
    parser.add_argument("base", type=Path, metavar="BASE.json", nargs="?", help="that of both bases")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="by default runs/<name of PROXY>_pipeline, of a comparison runs/compare",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands, with names for job numbers")
    for name in ("proxy", "base"):
        parser.add_argument(
            f"--set_{name}", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=f"--set, of the {name}"
        )
    compare = parser.add_argument_group("a comparison instead of PROXY.json and BASE.json")
    compare.add_argument(
        "--comparison", type=Path, nargs="+", metavar="FILE", help="what `doge-ds compare --config` takes"
    )
    add_settings(compare, "of the comparisons, as of `doge-ds compare`")
    compare.add_argument(
        "--ranks", type=positive, metavar="N", help="of a job; needed where DoReMi's reference models are trained"
    )
    text = parser.add_argument_group("preparing the store that both configurations name")
    text.add_argument("--recipe", type=Path, metavar="RECIPE", help="as of `doge-ds prepare`")
    text.add_argument("--prepare_tasks", type=positive, default=8, metavar="N", help="jobs that share it (default 8)")
    measure = parser.add_argument_group("evaluation, beside held-out perplexity; as of eval/run.py")
    measure.add_argument("--suite", help="a named set of tasks")
    measure.add_argument("--tasks", nargs="+", default=[], help="tasks by name")
    measure.add_argument("--num_fewshot", type=natural, help="solved examples before each question")
    measure.add_argument("--data_root", help="folder of datasets that eval/prefetch.py has made")
    slurm = parser.add_argument_group("options of sbatch, in one word: --sbatch_proxy='--nodes=2 --gpus-per-node=4'")
    slurm.add_argument("--sbatch", action="append", default=[], metavar="OPTIONS", help="for all stages")
    for kind in KINDS:
        slurm.add_argument(f"--sbatch_{kind}", action="append", default=[], metavar="OPTIONS", help=f"for {kind} jobs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
