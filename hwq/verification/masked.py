"""A verification in a process that sees an AVX2-only CPU: ``python -m hwq.masking -m hwq.verification.masked DIALECT VALUES``.

The process prints its progress, a line of JSON each, and last what it found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from hwq import masking, verification
from hwq.errors import Error
from hwq.progress import Progress

__all__ = ["verify"]


def verify(dialect: str, values: int, progress: Progress | None) -> verification.Verification:
    """`hwq.verification.verify` on an AVX2-only CPU.

    Raises
    ------
    Error
        This machine cannot mask its CPU, or the process failed.
    """
    command = masking.command("-m", __name__, dialect, str(values))
    told: dict[str, object] = {}
    with tempfile.TemporaryFile("w+") as trouble:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=trouble,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert child.stdout is not None
        with child:
            for line in child.stdout:
                told = json.loads(line)
                if progress is not None and "done" in told:
                    progress(told["done"], told["total"], told["name"])  # type: ignore[arg-type]
        if child.returncode or "cases" not in told:
            trouble.seek(0)
            raise Error("the masked process failed", where=dialect, why=trouble.read()[-500:] or None)
    cases = tuple(verification.Case(**case) for case in told["cases"])  # type: ignore[attr-defined]
    named = {name: str(told[name]) for name in ("dialect", "runtime", "version")}
    return verification.Verification(**named, command=f"{told['command']}, python -m hwq.masking", cases=cases)


def _main(dialect: str, values: str) -> None:
    def tell(done: int, total: int | None, name: str) -> None:
        print(json.dumps({"done": done, "total": total, "name": name}), flush=True)

    print(json.dumps(verification.verify(dialect, values=int(values), progress=tell).to_dict()), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
