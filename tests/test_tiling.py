"""Tilings: the search against brute force, the closed form against a walk over the loops, and what must be monotone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import worked
from hypothesis import given, settings
from hypothesis import strategies as st

from hwq.errors import Error
from hwq.simulators import find
from hwq.simulators.tiling import ORDERS, Product, room, search, traffic


def _walk(product: Product, tiles: tuple[int, int, int], order: str, burst: int) -> tuple[int, int, int]:
    """Bytes of A, B and sums of a walk over all tiles, in whole passes: a tile is fetched when the last one was another."""
    sizes = {"m": product.m, "k": product.k, "n": product.n}
    trips = {loop: -(-sizes[loop] // tile) for loop, tile in zip("mkn", tiles, strict=True)}
    held: dict[str, object] = {"a": None, "b": None, "out": None}
    fetched = dict.fromkeys(held, 0)
    for steps in itertools.product(*(range(trips[loop]) for loop in order)):
        at = dict(zip(order, steps, strict=True))
        for name, own in (("a", "mk"), ("b", "kn"), ("out", "mn")):
            tile = tuple(at[loop] for loop in own)
            if held[name] != tile:
                held[name] = tile
                fetched[name] += 1
    counts = {"a": trips["m"] * trips["k"], "b": trips["k"] * trips["n"], "out": trips["m"] * trips["n"]}
    assert all(fetched[name] % counts[name] == 0 for name in held)  # whole passes
    a, b, sums = (fetched[name] // counts[name] for name in held)
    whole = [-(-size // burst) * burst for size in (product.a_bytes, product.b_bytes, product.sum_bytes)]
    return a * whole[0], b * whole[1], 2 * (sums - 1) * whole[2]


def _draw(random: np.random.Generator, largest: int) -> Product:
    m, k, n = (int(size) for size in random.integers(1, largest + 1, 3))
    bits = (int(random.choice([4, 8, 16])), int(random.choice([4, 8])), int(random.choice([8, 32])), 32)
    return Product.of_bits(m, k, n, *bits)


def test_the_closed_form_is_a_walk_over_the_loops() -> None:
    random = np.random.default_rng(1)
    for _ in range(200):
        product = _draw(random, 6)
        tiles = tuple(int(random.integers(1, size + 1)) for size in (product.m, product.k, product.n))
        order, burst = str(random.choice(ORDERS)), int(random.choice([1, 4, 64]))
        found = traffic(product, *tiles, order, burst)
        assert (found.a_bytes, found.b_bytes, found.sum_bytes) == _walk(product, tiles, order, burst)
        assert found.out_bytes == -(-product.out_bytes // burst) * burst


def test_the_search_equals_brute_force_on_fifty_products() -> None:
    random = np.random.default_rng(2)
    for at in range(50):
        product = _draw(random, 8)
        stays = frozenset(name for name in ("a", "b", "out") if at % 5 == 0 and random.random() < 0.5)
        product = Product(*[getattr(product, name) for name in list(vars(product))[:7]], stays=stays)
        everything = room(product, product.m, product.k, product.n)
        capacity, burst = int(random.integers(20, max(21, everything + 8))), int(random.choice([1, 2, 16]))
        sizes = itertools.product(range(1, product.m + 1), range(1, product.k + 1), range(1, product.n + 1))
        fitting = [tiles for tiles in sizes if room(product, *tiles) <= capacity]
        least = min(traffic(product, *tiles, order, burst).bytes for tiles in fitting for order in ORDERS)
        found = search(product, capacity, burst)
        assert found.bytes == least, (product, capacity, burst)
        assert found == traffic(product, found.tm, found.tk, found.tn, found.order, burst)
        assert room(product, found.tm, found.tk, found.tn) <= capacity
        # Never below one pass of each, never above a schedule that fits and reuses nothing.
        burdens = [-(-size // burst) * burst for name, size in
                   (("a", product.a_bytes), ("b", product.b_bytes), ("out", product.out_bytes)) if name not in stays]  # fmt: skip
        assert found.bytes >= sum(burdens)
        for tm, tk, tn in fitting:
            m, k, n = -(-product.m // tm), -(-product.k // tk), -(-product.n // tn)
            assert found.bytes <= sum((
                0 if "a" in stays else n * -(-product.a_bytes // burst) * burst,
                0 if "b" in stays else m * -(-product.b_bytes // burst) * burst,
                0 if "out" in stays else -(-product.out_bytes // burst) * burst
                + 2 * (k - 1) * -(-product.sum_bytes // burst) * burst,
            ))  # fmt: skip


side = st.integers(1, 3000)


@settings(max_examples=40, deadline=None)
@given(
    side,
    side,
    side,
    st.sampled_from([4, 8, 16]),
    st.sampled_from([4, 8]),
    st.integers(40, 1 << 20),
    st.integers(0, 1 << 18),
)
def test_more_sram_and_fewer_bits_never_cost_more(m, k, n, a, b, capacity, more) -> None:
    product = Product.of_bits(m, k, n, a, b)
    found = search(product, capacity, 64)
    assert search(product, capacity + more, 64).bytes <= found.bytes
    assert search(Product.of_bits(m, k, n, a, 4), capacity, 64).bytes <= found.bytes
    assert room(product, found.tm, found.tk, found.tn) <= capacity


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 24), st.integers(1, 2000), st.integers(1, 2000), st.sampled_from(["ws", "os", "is"]),
    st.integers(10, 21), st.integers(1, 3), st.floats(1e8, 1e11), st.floats(1, 50),
)  # fmt: skip
def test_machines_with_more_sram_or_bandwidth_are_never_slower(
    size, k, n, dataflow, power, times, bandwidth, faster
) -> None:
    layer = {"op": "Conv", "batch": 1, "channels": k, "size": size, "filters": n, "kernel": 1, "groups": 1}
    base = {"buffer.capacity": float(1 << power), "dram.bandwidth": bandwidth}
    costs = {}
    for name, changed in (
        ("base", {}),
        ("sram", {"buffer.capacity": float(times << power)}),
        ("wide", {"dram.bandwidth": bandwidth * faster}),
    ):
        machine = find(f"systolic:16x16:{dataflow}").replace(base | changed)
        found = worked.measured(layer | {"machine": machine})[0]
        stall = sum(entry.terms["stall"] for entry in found.layers)
        costs[name] = found.cycles, sum(found.traffic["dram"].values()), stall
    assert costs["sram"][0] <= costs["base"][0] and costs["sram"][1] <= costs["base"][1]
    assert costs["wide"][0] <= costs["base"][0] and costs["wide"][2] <= costs["base"][2] * (1 + 1e-12)
    assert costs["wide"][1] == costs["base"][1]


def test_worked_by_hand() -> None:
    # 64 x 64 x 64 at 8 bits, 32-bit sums. Alone in 12 KiB everything fits: 3 x 4096 bytes.
    product = Product.of_bits(64, 64, 64)
    assert search(product, 12288).bytes == 12288
    # 4 KiB: K whole, so results need no wide sums. Stripes of 16 rows of A twice (2 x 1024), columns of B twice: with
    # Tn = 8 that is 2 x 512 and 2 x 128 of results: 3328. B passes four times: 4096 + 4 x 4096 + 4096.
    assert room(product, 16, 64, 8) == 2048 + 1024 + 256
    assert traffic(product, 16, 64, 8, "mnk").bytes == 6 * 4096
    assert search(product, 3328).bytes <= 6 * 4096


def test_what_cannot_be_tiled_is_told() -> None:
    with pytest.raises(Error, match="tiled"):
        search(Product.of_bits(10, 10, 10), 3)
    with pytest.raises(Error, match="tiled"):
        search(Product.of_bits(1 << 31, 10, 10), 1000)
    machine = find("systolic").replace({"buffer.capacity": 4.0})
    with pytest.raises(Error, match="tiled"):
        worked.measured({"op": "Gemm", "batch": 8, "inputs": 64, "outputs": 64, "machine": machine})
