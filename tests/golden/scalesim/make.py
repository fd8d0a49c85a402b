"""Run the real SCALE-Sim on random small layers and keep every report cell as text.

python -m venv side && side/bin/pip install scalesim==3.0.0 numpy==1.26.4
side/bin/python tests/golden/scalesim/make.py tests/golden/scalesim/rows.csv --count 120 --seed 7
"""

import argparse
import contextlib
import csv
import io
import math
import random
import tempfile
from pathlib import Path

CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight: {rows}
ArrayWidth: {cols}
IfmapSramSzkB: {ifmap_kb}
FilterSramSzkB: {filter_kb}
OfmapSramSzkB: {ofmap_kb}
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Bandwidth: {writes}
Dataflow: {dataflow}
ReadRequestBuffer: 32
WriteRequestBuffer: 32
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: {ifmap_reads}
IfmapSRAMBankNum: 1
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: {filter_reads}
FilterSRAMBankNum: 1
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
[run_presets]
InterfaceBandwidth: {mode}
UseRamulatorTrace: False
"""
CONFIG_KEYS = ("rows", "cols", "ifmap_kb", "filter_kb", "ofmap_kb", "dataflow", "mode",
               "ifmap_reads", "filter_reads", "writes")  # fmt: skip
LAYER_KEYS = ("ifmap_h", "ifmap_w", "filter_h", "filter_w", "channels", "filters", "stride")
REPORTS = ("COMPUTE_REPORT", "BANDWIDTH_REPORT", "DETAILED_ACCESS_REPORT")


def draw(source: random.Random) -> dict[str, int | str]:
    pick = source.choice
    filter_h, filter_w = pick([1, 1, 2, 3, 5]), pick([1, 1, 2, 3, 4])
    return {
        "rows": pick([1, 2, 3, 4, 5, 8, 8, 16, 24, 32]), "cols": pick([1, 2, 3, 4, 7, 8, 8, 16, 32, 40]),
        "ifmap_kb": pick([1, 1, 1, 2, 4]), "filter_kb": pick([1, 1, 1, 2, 3]), "ofmap_kb": pick([1, 1, 1, 2]),
        "dataflow": pick(["os", "ws", "is"]), "mode": pick(["CALC", "USER", "USER"]),
        "ifmap_reads": pick([1, 2, 3, 5, 10, 32, 100, 700]), "filter_reads": pick([1, 2, 4, 10, 33, 128]),
        "writes": pick([1, 2, 3, 7, 10, 50, 600]),
        "ifmap_h": filter_h + source.randrange(14), "ifmap_w": filter_w + source.randrange(12), "filter_h": filter_h,
        "filter_w": filter_w, "channels": pick([1, 2, 3, 8, 16, 40]), "filters": pick([1, 2, 5, 16, 33, 64]),
        "stride": pick([1, 1, 2, 3, 4]),
    }  # fmt: skip


def run_tool(case: dict[str, int | str], folder: Path) -> list[str]:
    from scalesim.scale_sim import scalesim

    (folder / "c.cfg").write_text(CONFIG.format(**case))
    (folder / "t.csv").write_text("Layer,h,w,fh,fw,c,n,s,\nx," + ",".join(str(case[key]) for key in LAYER_KEYS) + ",\n")
    (folder / "l.csv").write_text("Layer\n")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        tool = scalesim(save_disk_space=True, verbose=False, config=str(folder / "c.cfg"),
                        topology=str(folder / "t.csv"), layout=str(folder / "l.csv"))  # fmt: skip
        tool.run_scale(top_path=str(folder))
    return [(folder / "run" / f"{name}.csv").read_text().splitlines()[1] for name in REPORTS]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    source = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder, open(arguments.out, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*CONFIG_KEYS, *LAYER_KEYS, *REPORTS])
        done = 0
        while done < arguments.count:
            case = draw(source)
            words = math.prod(case[key] for key in LAYER_KEYS[:-1])
            if words > 400_000:
                continue
            try:
                lines = run_tool(case, Path(folder))
            except (ZeroDivisionError, ValueError) as error:  # the tool dies on a layer of one cycle
                print(f"tool failed: {error!r}", case, flush=True)
                continue
            writer.writerow([*(case[key] for key in (*CONFIG_KEYS, *LAYER_KEYS)), *lines])
            done += 1


if __name__ == "__main__":
    main()
