"""Runs the make targets of `kernels/tests` one after another on a thread of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "kernels" / "tests"
# The test that asks for each target; a target that no collected test asks for is not run.
TARGETS = {
    "test_every_path_equals_ref_in_c": "check",
    "test_the_sanitizers_find_nothing": "sanitized",
    "test_vnni_passes_where_the_cpu_lacks_it": "simde",
    "test_the_same_sources_pass_on_aarch64": "arm",
}
SECONDS = 600

_found: dict[str, Future[subprocess.CompletedProcess[str]]] = {}
_running: list[subprocess.Popen[str]] = []
_stopped = threading.Event()


def begin(tests: Sequence[str]) -> None:
    """Start the targets of these tests, in the order in which the tests will ask."""
    wanted = [TARGETS[test] for test in tests if test in TARGETS]
    if not wanted or shutil.which("make") is None:
        return
    _found.update({target: Future() for target in wanted})
    threading.Thread(target=_work, args=(wanted,), daemon=True).start()


def output(target: str) -> str:
    """What the target printed; its failure fails the test that asks."""
    done = _found[target].result(timeout=4 * SECONDS)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def stop() -> None:
    """End what still runs: the session is over, or was cut short."""
    _stopped.set()
    for process in _running:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # make and the checks that it started


def _work(targets: Sequence[str]) -> None:
    for target in targets:
        if _stopped.is_set():
            return
        try:
            process = subprocess.Popen(
                ["make", "-C", str(FOLDER), target],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            _running.append(process)
            out, err = process.communicate(timeout=SECONDS)
            _found[target].set_result(subprocess.CompletedProcess(process.args, process.returncode, out, err))
        except (OSError, subprocess.SubprocessError) as error:
            _found[target].set_exception(error)
