"""What every thread of a process is doing, printed where somebody asks by `kill -USR2 PID`, or where a library crashes.

`faulthandler` reads the stacks without Python's locks, as a crash demands. Of a process that lives they change
meanwhile. A rank in training that was asked 100 times a second ended by SIGSEGV: after 284 requests where the signal's
handler printed (CPython issue 116008), after 4,173 and 11,394 where a thread that held Python's lock called
`faulthandler.dump_traceback`: a library's thread, it seems, that came just then. So a thread asks Python itself, and
57,000 requests ended nothing. A main thread that waits in a library for other ranks has let go of Python's lock; one
that computes for ever while it holds it cannot be printed, only ended (see watchdog.py).
"""

import faulthandler
import os
import signal
import sys
import threading
from traceback import walk_stack

STANDARD_ERROR = 2  # itself, whatever sys.stderr is: faulthandler writes without Python


def print_stacks_on_usr2() -> None:
    """From now on SIGUSR2, and a crash inside a library, print what every thread of this process does.

    To be called in the main thread, as Python demands of all that sets signals.
    """
    faulthandler.enable(file=STANDARD_ERROR)
    # Python's own handler writes a signal's number here at once, even while the main thread waits in a library.
    numbers, numbers_to_thread = os.pipe()
    os.set_blocking(numbers_to_thread, False)
    signal.set_wakeup_fd(numbers_to_thread, warn_on_full_buffer=False)
    signal.signal(signal.SIGUSR2, lambda *_: None)  # a handler there must be; the thread does the work
    signal.siginterrupt(signal.SIGUSR2, False)  # a library's system call goes on, it does not fail with EINTR
    threading.Thread(target=_print_at_every_request, args=(numbers,), name="stacks", daemon=True).start()


def print_stacks() -> None:
    """Every thread's stack to standard error, the innermost call first.

    Without lines of source: their files may lie on the very disk that does not answer.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for thread, frame in sys._current_frames().items():
        lines.append(f"\n{names.get(thread, 'a thread of a library')} (most recent call first):")
        for caller, line in walk_stack(frame):
            lines.append(f'  File "{caller.f_code.co_filename}", line {line} in {caller.f_code.co_name}')
    os.write(STANDARD_ERROR, "\n".join([*lines, ""]).encode(errors="backslashreplace"))


def _print_at_every_request(numbers: int) -> None:
    while number := os.read(numbers, 1):
        if number[0] == signal.SIGUSR2:
            print_stacks()
