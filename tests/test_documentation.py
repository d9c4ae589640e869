"""What the documentation names is there: files, headings, verbs, options, configuration keys and modules."""

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch.distributed.run
from deepspeed.launcher import runner

from doge_ds import cli, pipeline
from doge_ds.command_line import read_run_arguments
from doge_ds.config import BaseConfig, ProxyConfig
from doge_ds.errors import ConfigError
from tests.documents import DOCUMENTS, ROOT, commands, read_document, words_of

READ = {path: read_document(path.read_text()) for path in DOCUMENTS}
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)

# Options of programs whose parsers cannot be asked here: Slurm's sbatch, srun, scancel; pip, tail, and g++'s friends.
SLURM_OPTIONS = {
    *("--account", "--cpu-bind", "--cpus-per-gpu", "--cpus-per-task", "--dependency", "--distribution", "--gpu-bind"),
    *("--gpus", "--gpus-per-node", "--gpus-per-task", "--job-name", "--kill-on-bad-exit", "--kill-on-invalid-dep"),
    *("--me", "--mem", "--no-requeue", "--nodes", "--ntasks", "--ntasks-per-node", "--parsable", "--partition"),
    *("--requeue", "--signal", "--time", "--full", "--batch"),
}
OTHER_OPTIONS = {"--index-url", "--logdir", "--help", "--version", "--long", "--local_rank"}
SECTIONS = ("data", "training", "doge", "doremi")
KEYS = {
    f"{section}.{key}"
    for kind in (ProxyConfig, BaseConfig)
    for section in SECTIONS
    if section in kind.model_fields
    for key in getattr(kind.model_fields[section].annotation, "model_fields", {})
}


def load_program(file: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(file.replace("/", "_"), ROOT / file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


EVALUATION = {file: load_program(file) for file in ("eval/run.py", "eval/prefetch.py")}


def parse_run(program: str, arguments: Sequence[str]) -> None:
    read_run_arguments("", arguments, needs_mixture="base" in program)


def parse_eval(program: str, arguments: Sequence[str]) -> None:
    EVALUATION[program]._parser().parse_args(arguments)


def parse_verb(verb: str, arguments: Sequence[str]) -> None:
    module = importlib.import_module(cli.VERBS[verb][0])
    parser = cli._parser(verb, "")
    module.add_arguments(parser)
    parser.parse_args(arguments)


PROGRAMS: dict[str, Callable[[str, Sequence[str]], None]] = {
    "doge_ds/train_proxy.py": parse_run,
    "doge_ds/train_base.py": parse_run,
    "eval/run.py": parse_eval,
    "eval/prefetch.py": parse_eval,
}
SCRIPTS = {
    "slurm/proxy.sh": ("doge_ds/train_proxy.py", ["--config"]),
    "slurm/base.sh": ("doge_ds/train_base.py", ["--config"]),
    "slurm/eval.sh": ("eval/run.py", []),
}


def check_command(words: Sequence[str]) -> bool:
    """Ask the parsers of everything that a command starts; whether it starts anything of ours.

    Raises:
        ConfigError: a parser of ours refuses it.
    """
    if words[0] == "doge-ds":
        parse_verb(words[1], words[2:])
        return True
    if words[0] == "slurm/pipeline.sh":
        pipeline.read_arguments(words[1:])
        return True
    place = next((place for place, word in enumerate(words) if place and (word in PROGRAMS or word in SCRIPTS)), None)
    if place is None:
        return False
    launcher, program, arguments = list(words[:place]), words[place], list(words[place + 1 :])
    if program in SCRIPTS:
        program, first = SCRIPTS[program]
        arguments = first + arguments
    PROGRAMS[program](program, arguments)
    check_launcher([*launcher, program])
    return True


def check_launcher(words: Sequence[str]) -> None:
    """The options before the program."""
    if words[0] == "deepspeed":
        assert runner.parse_args(words[1:]).user_script == words[-1]
    elif words[0] == "torchrun":
        assert torch.distributed.run.get_args_parser().parse_args(words[1:]).training_script == words[-1]
    elif words[0] in ("sbatch", "srun"):
        if "torchrun" in words:
            place = words.index("torchrun")
            check_launcher(words[place:])
            words = words[: place + 1]
        assert {word.split("=")[0] for word in words[1:-1] if word.startswith("--")} <= SLURM_OPTIONS
    else:
        assert list(words) in (["python", words[-1]], ["python3", words[-1]]), words


def texts(path: Path) -> Iterator[str]:
    """All that a reader sees."""
    found = READ[path]
    yield from (*found.code, *found.prose, *(text for _, text in found.blocks))


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    for link in READ[path].links:
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_relative_to(ROOT), link
        assert target.exists(), f"{path.name}: {link} leads nowhere"
        if anchor:
            assert target in READ, f"{path.name}: {link} has an anchor in a file without headings"
            assert anchor in READ[target].anchors, f"{path.name}: {link}: no such heading"


def test_the_readme_leads_to_every_document() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in READ and path not in reached:
            reached.add(path)
            waiting += [(path.parent / link.partition("#")[0]).resolve() for link in READ[path].links]
    assert reached == set(DOCUMENTS)


@each_document
def test_no_path_of_one_machine(path: Path) -> None:
    for text in texts(path):
        assert not re.search(r"(?<![\w.:/])/(home|root|work|tmp|Users|mnt|scratch)/", text), text


@each_document
def test_files_named_in_the_text_exist(path: Path) -> None:
    for code in READ[path].code:
        if re.fullmatch(r"(doge_ds|docs|ds_configs|slurm|eval|tests|benchmarks)/[\w./-]*", code):
            assert (ROOT / code).exists(), f"{path.name}: {code}"


@each_document
def test_tests_named_in_the_text_exist(path: Path) -> None:
    for code in READ[path].code:
        if named := re.fullmatch(r"(tests/[\w/]+\.py)::(\w+)", code):
            assert f"\ndef {named[2]}(" in (ROOT / named[1]).read_text(), f"{path.name}: {code}"


@each_document
def test_commands_are_understood_by_their_programs(path: Path) -> None:
    for _, text in READ[path].blocks:
        for command in commands(text):
            try:
                words = words_of(command)
            except ValueError:  # what stands in JSON and in messages need not be words of a shell
                continue
            try:
                check_command(words)
            except ConfigError as error:
                pytest.fail(f"{path.name}: {command}: {error}")


@each_document
def test_verbs_exist(path: Path) -> None:
    for text in READ[path].code + READ[path].prose:
        for verb in re.findall(r"doge-ds ([a-z]\w*)", text):
            assert verb in cli.VERBS, f"{path.name}: {text}"


@each_document
def test_options_exist(path: Path, all_options: set[str]) -> None:
    for text in READ[path].code + READ[path].prose:
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", text):
            assert option in all_options, f"{path.name}: {option}"


@each_document
def test_configuration_keys_exist(path: Path) -> None:
    for text in texts(path):
        for key in re.findall(rf"(?<![\w./-])(?:{'|'.join(SECTIONS)})\.[a-z_]+", text):
            if key not in NO_KEYS:
                assert key in KEYS, f"{path.name}: {key}"


# A module, and an example of a message.
NO_KEYS = {"doge.py", "doremi.py", "training.learning_rat"}


@pytest.fixture(scope="module")
def all_options() -> set[str]:
    """Options of all our programs and of the launchers, as their --help lists them."""
    capture = pytest.MonkeyPatch()
    helps: list[str] = []
    capture.setattr("argparse.ArgumentParser.print_help", lambda parser, *_: helps.append(parser.format_help()))
    asked: list[Callable[[], object]] = [
        lambda: parse_run("train_base", ["--help"]),
        lambda: parse_run("train_proxy", ["--help"]),
        lambda: parse_eval("eval/run.py", ["--help"]),
        lambda: pipeline._parser().parse_args(["--help"]),
        lambda: runner.parse_args(["--help"]),
        lambda: torch.distributed.run.get_args_parser().parse_args(["--help"]),
        *(lambda verb=verb: parse_verb(verb, ["--help"]) for verb in cli.VERBS),
    ]
    for ask in asked:
        with pytest.raises(SystemExit):
            ask()
    capture.undo()
    assert len(helps) == len(asked)
    found = {option for text in helps for option in re.findall(r"--[a-z][\w-]*", text)}
    assert {"--mixture", "--train_tokenizer", "--batch_size", "--num_accelerators", "--nproc-per-node"} <= found
    return found | SLURM_OPTIONS | OTHER_OPTIONS


def test_the_rooms_in_the_architecture_are_those_on_disk() -> None:
    """Every module has its line, in its folder, and every line its file."""
    (tree,) = (text for _, text in READ[ROOT / "docs/architecture.md"].blocks if "config.py" in text)
    named, folders = set(), []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], name]
        named.add("".join(folders))
        assert (ROOT / "".join(folders)).exists(), line
    for file in (ROOT / "doge_ds").rglob("*.py"):
        if file.name != "__init__.py":
            assert str(file.relative_to(ROOT)) in named


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("doge-ds prepare --input a=b --outputs s --tokenizer t", "required: --output"),
        ("deepspeed doge_ds/train_proxy.py --config c --mixture uniform", "unrecognized arguments: --mixture"),
        ("x=$(sbatch --nodes=2 slurm/base.sh c --mixtures uniform)", "unrecognized arguments: --mixtures uniform"),
        ("python eval/run.py --data d", "required: --model"),
        ("slurm/pipeline.sh p.json --sbatch --nodes=2", "names no PROXY.json and BASE.json"),
        ("python eval/prefetch.py --suite doge6", "required: --to"),
    ],
)
def test_a_wrong_command_would_be_found(command: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_command(words_of(command))


def test_markdown_is_read_as_github_does() -> None:
    found = read_document(
        "# A `b`: c, d!\n## Twice\n## Twice\n[x](y.md#z) `--code` text\n\n    indented\n\n```bash\nfenced\n```\n"
    )
    assert found.anchors == {"a-b-c-d", "twice", "twice-1"}
    assert (found.links, found.code) == (["y.md#z"], ["b", "--code"])
    assert found.blocks == [("", "indented\n"), ("bash", "fenced\n")]
    assert list(commands("a \\\n  b  # why\n# no\nc <<'END'\n# d\nEND\n\ne#f\n")) == [
        "a b",
        "c <<'END'\n# d\nEND",
        "e#f",
    ]
