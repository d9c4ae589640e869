"""Measure models: held-out perplexity on a token store, few-shot accuracy on lm-eval's tasks, or both.

    python eval/run.py --model runs/base                                     six tasks, 5-shot (--suite doge6)
    python eval/run.py --model runs/base --data STORE                        perplexity of every domain of a store
    python eval/run.py --model runs/base --data STORE --suite doge6 --data_root DIR
    python eval/run.py --model runs/uniform runs/doge --data STORE --output comparison
    python eval/run.py --model 'runs/base/checkpoints/step*' --data STORE --output course
    deepspeed --num_accelerators 4 eval/run.py ...                           the same numbers, sooner; torchrun too

Tasks are lm-eval's own. On a machine without internet: python eval/prefetch.py --suite doge6 --to DIR where there is
one, then --data_root DIR. Every held-out token of every domain is predicted exactly once, also of domains never trained
on: --data takes any store that was prepared with the model's tokenizer. A run that was killed goes on where it stopped,
task by task and domain by domain. Writes results.json, by default into the model's folder; of several models a folder
with comparison.json, .csv and .md beside the results of each.

Exit status: 0 done, 2 the input is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from doge_ds.command_line import Parser, natural, positive
from doge_ds.errors import DogeError, report
from doge_ds.training.launch import run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """The program on one rank; its exit status. A user's mistake is one line."""
    try:
        return evaluate(arguments)
    except DogeError as error:
        return report(error)


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """The same, where a mistake is raised."""
    options = _parser().parse_args(arguments)
    from doge_ds.model_evaluation import Request, evaluate_models  # takes seconds: --help need not wait

    given = vars(options)
    given.pop("local_rank")
    try:
        evaluate_models(Request(**given))
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


def _parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "--model",
        dest="models",
        nargs="+",
        required=True,
        help="Hugging Face folders, names on the hub, run directories, checkpoints (RUN/checkpoints/step...), or "
        "patterns of these; differences are to the first",
    )
    parser.add_argument("--output", type=Path, help="the results file, or of several models the folder (see above)")
    parser.add_argument(
        "--batch_size", type=_batch_size, default=16, help="at a time; for tasks also auto (default 16)"
    )
    parser.add_argument("--seed", type=natural, default=1234, help="of few-shot examples and bootstraps (default 1234)")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda:1, ...")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed's launcher adds it
    text = parser.add_argument_group("held-out perplexity")
    text.add_argument("--data", help="token store with the held-out text")
    text.add_argument("--domains", nargs="+", help="only these domains of the store; by default all")
    text.add_argument("--sequence_length", type=positive, help="tokens of a window; by default as in training")
    text.add_argument(
        "--stride", type=positive, help="new tokens a window; fewer give each more context (default: all but one)"
    )
    text.add_argument(
        "--document_mask", action="store_true", help="a token sees nothing of the documents before its own"
    )
    tasks = parser.add_argument_group("few-shot tasks")
    tasks.add_argument("--suite", help="a named set of tasks: doge6 (the default where there is no --data)")
    tasks.add_argument("--tasks", nargs="+", default=[], help="lm-eval tasks by name")
    tasks.add_argument(
        "--num_fewshot", type=natural, default=5, help="solved examples before each question (default 5)"
    )
    tasks.add_argument("--limit", type=_limit, help="only so many questions of each task, or below 1 that part of them")
    tasks.add_argument("--data_root", help="folder of datasets that eval/prefetch.py has made")
    tasks.add_argument("--include_path", type=Path, help="folder with task definitions of your own, lm-eval's YAML")
    tasks.add_argument("--log_samples", action="store_true", help="write every question and answer beside the results")
    return parser


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else positive(text)


def _limit(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf") or (number > 1 and number != int(number)):
        raise ValueError
    return number


# argparse names the type in its message.
_batch_size.__name__ = "batch size"
_limit.__name__ = "number of questions, or part of them below 1"


if __name__ == "__main__":
    run_program(evaluate)
