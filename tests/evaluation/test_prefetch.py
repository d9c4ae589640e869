"""eval/prefetch.py against a server on this machine that answers like the hub; huggingface_hub is the real one."""

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import datasets
import pytest

from doge_ds.errors import ConfigError
from doge_ds.evaluation.prefetching import _readme

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests/fixtures/tasks_measuring_nothing"
PROGRAM, CONVERTED = "EleutherAI/logiqa", "refs/convert/parquet"


class Hub(BaseHTTPRequestHandler):
    """Answers for `files`: (repository, revision) -> path -> bytes; a revision's commit is a hash of its name."""

    files: dict[tuple[str, str], dict[str, bytes]]
    asked: list[str]
    fails_at: str | None = None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.asked.append(f"{self.command} {path}")
        for (repository, revision), files in self.files.items():
            commit = hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()
            api = f"api/datasets/{repository}"
            if path in ([api] if revision == "main" else []) + [
                f"{api}/revision/{name}" for name in (revision, commit)
            ]:
                return self._json(
                    {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files], "tags": []}
                )
            if path.startswith(f"{api}/tree/{commit}"):
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                return self._json(entries)
            prefix = f"datasets/{repository}/resolve/{commit}/"
            if path.startswith(prefix) and path.removeprefix(prefix) in files:
                return self._file(path.removeprefix(prefix), files, commit)
        return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"} if "/revision/" in path else {})

    def _file(self, name: str, files: dict[str, bytes], commit: str) -> None:
        if type(self).fails_at and name.endswith(type(self).fails_at or ""):
            return self._answer(403, b"", {})
        etag = hashlib.sha256(files[name]).hexdigest()
        return self._answer(200, files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _json(self, values: object) -> None:
        self._answer(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The fixture's datasets; logiqa as a program, with what the hub converted it to."""
    folder = tmp_path_factory.mktemp("parquet")
    files: dict[tuple[str, str], dict[str, bytes]] = {}
    for repository in ("allenai/sciq", "aps/super_glue", "baber/piqa", "allenai/winogrande"):
        place = FIXTURE / repository
        files[repository, "main"] = {
            str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()
        }
    files[PROGRAM, "main"] = {"logiqa.py": b"raise SystemExit('this must not run')\n", "README.md": b"# logiqa\n"}
    files["someone/program", "main"] = {"program.py": b"", "README.md": b""}
    converted = files[PROGRAM, CONVERTED] = {}
    for split, rows in datasets.load_dataset(str(FIXTURE / PROGRAM), "logiqa").items():
        rows.to_parquet(folder / f"{split}.parquet")
        converted[f"logiqa/{split}/0000.parquet"] = (folder / f"{split}.parquet").read_bytes()
    Hub.files, Hub.asked = files, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def prefetch(endpoint: str, to: Path, *names: str) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(to.parent / "hf_home")}
    command = [sys.executable, "eval/prefetch.py", *(names or ("--suite", "doge6")), "--to", str(to)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def prefetch_here(endpoint: str, to: Path, *names: str) -> "subprocess.CompletedProcess[str]":
    """The same in this process, which has lm-eval's index of tasks already: a start takes 7 seconds."""
    specification = importlib.util.spec_from_file_location("eval_prefetch", ROOT / "eval/prefetch.py")
    assert specification is not None
    assert specification.loader is not None
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    arguments = [*(names or ("--suite", "doge6")), "--to", str(to)]
    printed, complaints = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(complaints):
        patch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        status = program.main(arguments)
    return subprocess.CompletedProcess(arguments, status, printed.getvalue(), complaints.getvalue())


@pytest.fixture(scope="module")
def fetched(hub: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """All six, after a first try that the server broke off; and what the second printed."""
    to = tmp_path_factory.mktemp("login") / "tasks"
    Hub.fails_at = "wic/validation.jsonl"
    broken = prefetch(hub, to)
    Hub.fails_at = None
    assert broken.returncode == 2
    assert broken.stderr.splitlines()[-1].startswith("error: the dataset aps/super_glue: cannot be downloaded (")
    assert "called again, it goes on where it stopped" in broken.stderr
    done = prefetch(hub, to)
    assert done.returncode == 0, done.stderr
    return to, done.stdout


def test_the_folder_holds_every_item_of_the_tasks(fetched: tuple[Path, str]) -> None:
    to, printed = fetched
    for repository, configuration in (
        ("allenai/sciq", None),
        ("aps/super_glue", "copa"),
        ("aps/super_glue", "wic"),
        ("baber/piqa", None),
        ("allenai/winogrande", "winogrande_xl"),
        (PROGRAM, "logiqa"),
    ):
        wanted = datasets.load_dataset(str(FIXTURE / repository), configuration)
        found = datasets.load_dataset(str(to / repository), configuration)
        assert {split: rows.to_list() for split, rows in found.items()} == {
            split: rows.to_list() for split, rows in wanted.items()
        }
        assert found["train"].features == wanted["train"].features
    assert "logiqa: 12 test, 8 train, 6 validation" in printed
    assert f"python eval/run.py --model MODEL --tasks doge6 --data_root {to}" in printed


def test_a_dataset_that_is_a_program_comes_converted_and_is_not_run(fetched: tuple[Path, str]) -> None:
    to, _ = fetched
    assert not list((to / PROGRAM).rglob("*.py"))
    assert "logiqa/test/*.parquet" in (to / PROGRAM / "README.md").read_text()


def test_a_program_that_the_hub_has_not_converted_is_one_line(hub: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\ndataset_path: someone/program\noutput_type: multiple_choice\n")
    done = prefetch_here(hub, tmp_path / "tasks", "--tasks", "mine", "--include_path", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: the dataset someone/program: is a program, which `datasets` no longer runs, and the hub has no "
        "converted copy; leave the task out, or point it to a copy by --include_path"
    ]


def test_a_part_of_a_dataset_is_not_taken_for_it(tmp_path: Path) -> None:
    part = tmp_path / "default/partial-train/0000.parquet"
    part.parent.mkdir(parents=True)
    part.touch()
    with pytest.raises(ConfigError, match=r"the dataset a/b: is converted in part only \(partial-train\)"):
        _readme("a/b", tmp_path)


def test_what_is_there_is_not_asked_for_again(hub: str, fetched: tuple[Path, str]) -> None:
    Hub.asked.clear()
    done = prefetch_here("http://127.0.0.1:9", fetched[0])  # nobody listens there
    assert done.returncode == 0, done.stderr
    assert "downloading" not in done.stdout
    assert not Hub.asked


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    done = prefetch_here("http://127.0.0.1:9", tmp_path / "tasks", "--tasks", "sciq")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the dataset allenai/sciq: cannot be downloaded (")
    assert line.endswith("run this on a machine with internet; called again, it goes on where it stopped")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = prefetch_here("http://127.0.0.1:9", tmp_path / "file", "--tasks", "sciq")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: --to {tmp_path}/file/allenai/sciq: cannot be written (Not a directory); name another folder"
    ]


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for names, message in (
        (["--tasks", "scik"], "error: --tasks scik: is no task of lm-eval; did you mean 'sciq'?"),
        (["--tasks"], "error: command line: argument --tasks: expected at least one argument; see --help"),
    ):
        done = prefetch_here("http://127.0.0.1:9", tmp_path / "tasks", *names)
        assert (done.returncode, done.stderr.splitlines()) == (2, [message])
