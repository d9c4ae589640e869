"""Our own code neither runs what it reads nor hands strings to a shell; where a library could, it is told not to."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Calls that run what they are given, or give files to their owner alone, and where they are allowed and why.
LOADERS = ("load_checkpoint", "get_fp32_state_dict_from_zero_checkpoint", "deepspeed.checkpoint.ds_to_universal")
ALLOWED = {
    ("training/checkpoints.py", "load_checkpoint"): "after refuse_what_others_may_have_written",
    ("training/hugging_face.py", "get_fp32_state_dict_from_zero_checkpoint"): "likewise, in export.py",
    ("training/universal.py", "deepspeed.checkpoint.ds_to_universal"): "likewise",
}
FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_CALLS = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.load", "pd.read_pickle"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load", "torch.hub.load"),
    *("tempfile.mkdtemp", "tempfile.mkstemp", "tempfile.NamedTemporaryFile", "os.chmod"),
}


_WORDS = (ast.Constant, ast.Name)


def suspicions(text: str) -> Iterator[str]:
    """What a module does that must not be done to what comes from outside."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (name for name in modules if name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.Constant) and node.value in LOADERS:
            yield str(node.value)
        elif isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
    unpacked = {ast.unparse(word.value) for word in call.keywords if word.arg is None}
    if name in FORBIDDEN_CALLS or name in FORBIDDEN_NAMES:
        yield name
    last = name.rpartition(".")[2]
    if last in LOADERS:
        yield last
    if last == "load" and name.startswith("np.") and given.get("allow_pickle") != "False":
        yield name
    if given.get("shell", "False") != "False" or given.get("trust_remote_code", "False") != "False":
        yield f"{name}(shell or trust_remote_code)"
    if last == "from_pretrained" and not unpacked & {"ONLY_NUMBERS", "NO_PROGRAMS" if "ModelFor" not in name else ""}:
        yield name
    if last == "format" and isinstance(call.func, ast.Attribute) and not isinstance(call.func.value, _WORDS):
        yield name


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import load",
        "eval(x)",
        "exec(x)",
        "os.system(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=True)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "yaml.load(x, Loader=Loader)",
        "subprocess.run(x, shell=True)",
        "f(x, shell=y)",
        "AutoModelForCausalLM.from_pretrained(x)",
        "AutoModelForCausalLM.from_pretrained(x, **NO_PROGRAMS)",
        "AutoTokenizer.from_pretrained(x)",
        "load_dataset(x, trust_remote_code=True)",
        "engine.load_checkpoint(x)",
        "run(['-m', 'deepspeed.checkpoint.ds_to_universal'])",
        "tempfile.mkdtemp()",
        "values['text'].format(x)",
    ],
)
def test_a_suspicious_call_would_be_found(text: str) -> None:
    assert list(suspicions(text))


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "re.compile(x)",
        "yaml.safe_load(x)",
        "np.load(x, allow_pickle=False)",
        "AutoTokenizer.from_pretrained(x, **NO_PROGRAMS)",
        "AutoModelForCausalLM.from_pretrained(x, config=y, **ONLY_NUMBERS)",
        "'{}'.format(x)",
        "json.load(x)",
    ],
)
def test_an_innocent_call_is_none(text: str) -> None:
    assert not list(suspicions(text))


def test_our_own_code_does_none_of_it() -> None:
    found = {}
    for file in sorted([*(ROOT / "doge_ds").rglob("*.py"), *(ROOT / "eval").glob("*.py")]):
        place = str(file.relative_to(ROOT)).removeprefix("doge_ds/")
        for suspicion in suspicions(file.read_text()):
            if (place, suspicion) not in ALLOWED:
                found[place] = suspicion
    assert not found
