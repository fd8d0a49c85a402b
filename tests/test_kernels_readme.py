"""kernels/README.md: its examples run, and its matrix is the dispatch table's."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from hwq.kernels import paths

README = Path(__file__).parents[1] / "kernels" / "README.md"


def test_the_examples_run() -> None:
    text = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    test = doctest.DocTestParser().get_doctest(text, {}, "kernels/README.md", str(README), 0)
    assert len(test.examples) > 15
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(test).failed == 0


def test_the_matrix_is_the_dispatch_tables() -> None:
    table = re.search(r"<!-- matrix -->\n(.*?)\n?<!-- /matrix -->", README.read_text(), re.DOTALL)
    assert table and table[1] == paths.markdown()
