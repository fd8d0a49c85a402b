"""Energy: the published table, interpolation, memories, and totals recomputed by hand."""

from __future__ import annotations

import math

import pytest
import worked

from hwq.errors import Error
from hwq.simulators import energy, find

# Horowitz, ISSCC 2014 (45 nm) and Jouppi et al., ISCA 2021, table 2 (7 nm), in pJ.
PUBLISHED = {
    "add.int32": (0.1, 0.03),
    "add.float16": (0.4, 0.16),
    "add.float32": (0.9, 0.38),
    "multiply.int8": (0.2, 0.07),
    "multiply.int32": (3.1, 1.48),
    "multiply.float16": (1.1, 0.34),
    "multiply.float32": (3.7, 1.31),
    "sram.kib8": (10, 7.5),
    "sram.kib32": (20, 8.5),
    "sram.kib1024": (100, 14),
}


@pytest.mark.parametrize("event", PUBLISHED)
def test_the_table_is_the_published_one(event):
    assert (energy.event_picojoules(event, 45), energy.event_picojoules(event, 7)) == PUBLISHED[event]
    assert (
        energy.event_picojoules(event, 90) == PUBLISHED[event][0]
        and energy.event_picojoules(event, 4) == PUBLISHED[event][1]
    )
    nodes = [45, 28, 16, 12, 7]
    values = [energy.event_picojoules(event, node) for node in nodes]
    assert values == sorted(values, reverse=True)
    # Half way in the logarithm of the node lies the geometric mean.
    assert energy.event_picojoules(event, math.sqrt(45 * 7)) == pytest.approx(
        math.sqrt(values[0] * values[-1]), rel=1e-12
    )


def test_every_number_has_a_source():
    table = energy.energy_table()
    assert len(table) >= 40
    assert all(number.source and number.confidence and number.unit for number in table.values())
    assert sum(number.confidence == "assumed" for number in table.values()) < len(table) / 2
    with pytest.raises(Error):
        energy.event_picojoules("multiply.int3", 7)


def test_a_mac_equals_the_hand_worked_one():
    block = worked.blocks()["energy of one MAC"]
    assert energy.event_picojoules("multiply.int8", 28) == pytest.approx(block["product"], rel=1e-14)
    assert energy.event_picojoules("add.int32", 28) == pytest.approx(block["addition"], rel=1e-14)


def test_sram_goes_through_its_anchors():
    for node, column in ((45, 0), (7, 1)):
        for size, event in ((8, "sram.kib8"), (32, "sram.kib32"), (1024, "sram.kib1024")):
            assert energy.sram_picojoules_per_bit(size * 1024, node) == pytest.approx(
                PUBLISHED[event][column] / 64, rel=1e-12
            )
        assert energy.sram_picojoules_per_bit(24 << 20, node) == energy.sram_picojoules_per_bit(1 << 20, node)
        sizes = [energy.sram_picojoules_per_bit(1 << power, node) for power in range(9, 24)]
        assert sizes == sorted(sizes)


def test_offchip_bands_are_ordered():
    for kind in ("DDR3", "DDR4", "LPDDR4", "GDDR6", "HBM2", "flash", "link"):
        band = energy.offchip_picojoules_per_bit(kind)
        assert 0 < band["low"] <= band["typical"] <= band["high"]
    # 1300 and 2600 pJ a 64-bit access.
    assert energy.offchip_picojoules_per_bit("DDR3")["typical"] == pytest.approx(1300 / 64, rel=2e-3)
    assert energy.offchip_picojoules_per_bit("DDR3")["high"] == pytest.approx(2600 / 64, rel=2e-3)


def test_a_layers_energy_is_its_events_times_the_table():
    layer = {"op": "Gemm", "machine": "tpu-v1", "batch": 200, "inputs": 2048, "outputs": 2048}
    result, entry = worked.measured(layer)
    macs, outputs = 200 * 2048 * 2048, 200 * 2048

    def at(event):
        return energy.event_picojoules(event, 28)

    traffic = {memory: sum(parts.values()) for memory, parts in entry.traffic.items()}
    by_hand = {
        "mac": macs * (at("multiply.int8") + at("add.int32")),
        "array": macs * 5 * at("hop.byte"),  # one byte of A and four of the sum move on with every MAC
        # bias, requantize (3): four additions an output and one int32 product
        "vector": outputs * (4 * at("add.int32") + at("multiply.int32")),
        "dram": traffic["dram"] * 8 * 20.3,
        "buffer": traffic["buffer"] * 8 * at("sram.kib1024") / 64,
        "accumulators": traffic["accumulators"] * 8 * at("sram.kib1024") / 64,
        "host": 0.0,
        "static": 28 * entry.seconds * 1e12,
    }
    assert set(entry.energy) == set(by_hand)
    for name, value in by_hand.items():
        assert entry.energy[name] == pytest.approx(value, rel=1e-12), name
    # Between the ends of the band only off-chip memories differ.
    low, typical, high = result.energy_bands["dram"]
    assert (low / typical, high / typical) == (pytest.approx(15 / 20.3), pytest.approx(2.0))
    assert result.picojoules_band[0] < result.picojoules < result.picojoules_band[1]
    assert result.picojoules == pytest.approx(sum(sum(one.energy.values()) for one in result.layers), rel=1e-12)


def test_static_energy_is_left_out_and_said():
    result, entry = worked.measured({"op": "Gemm", "machine": "systolic", "batch": 1, "inputs": 64, "outputs": 64})
    assert "static" not in entry.energy and any("static" in note for note in result.notes)
    warm = find("systolic").replace({"energy.static_power": 2.0})
    entry = worked.measured({"op": "Gemm", "machine": warm, "batch": 1, "inputs": 64, "outputs": 64})[1]
    assert entry.energy["static"] == pytest.approx(2e12 * entry.seconds)
