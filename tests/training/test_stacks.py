"""A process that is asked by SIGUSR2 prints its stacks and goes on, whatever it is doing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUESTS = 1_000

# Threads whose stacks grow and shrink, with Python's lock let go in between: frames and their memory come and go.
BUSY = """
import os, threading
from doge_ds.training.stacks import print_stacks_on_usr2

def descend(depth):
    os.stat("/")
    return descend(depth - 1) if depth else 0

def work():
    while not ended.is_set():
        descend(400)

print_stacks_on_usr2()
ended = threading.Event()
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
print("ready", flush=True)
while os.read(0, 1) != b"e":
    pass
ended.set()
for thread in threads:
    thread.join()
print("went on", flush=True)
"""

# The main thread waits inside a library, from which Python's handlers do not call it away.
IN_A_LIBRARY = """
import ctypes
from doge_ds.training.stacks import print_stacks_on_usr2

def wait_in_a_library():
    return ctypes.CDLL(None).read(0, ctypes.create_string_buffer(1), 1)

print_stacks_on_usr2()
print("ready", flush=True)
print("read", wait_in_a_library(), flush=True)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a program that says "ready"; its standard error goes to a file."""
    with ExitStack() as stack:
        stream = stack.enter_context((tmp_path / "stderr").open("w"))

        def start(program: str) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stream,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    text=True,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return process

        yield start


def test_no_request_ends_a_process_whose_threads_work(
    start: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(BUSY)
    for _ in range(REQUESTS):
        process.send_signal(signal.SIGUSR2)
        time.sleep(0.001)
        assert process.poll() is None, process.returncode
    assert process.communicate("e", timeout=30)[0] == "went on\n"
    assert process.returncode == 0
    printed = (tmp_path / "stderr").read_text()
    assert printed.count("in _print_at_every_request") > 1
    assert printed.count("in descend") > 10


def test_a_process_that_waits_in_a_library_prints_at_once_and_its_call_is_not_interrupted(
    start: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(IN_A_LIBRARY)
    until = time.monotonic() + 30
    while "in wait_in_a_library" not in (tmp_path / "stderr").read_text():
        assert time.monotonic() < until, (tmp_path / "stderr").read_text()
        process.send_signal(signal.SIGUSR2)
        time.sleep(0.05)
    assert process.poll() is None
    assert process.communicate("e", timeout=30)[0] == "read 1\n"
