"""The door to kernels/: flat buffers and numbers. `hwq.kernels` checks operands before it comes here."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

Buffer = Any  # C-contiguous, of the size that the call implies; ValueError if smaller
Geometry = tuple[tuple[int, ...], ...]  # in, kernel, stride, dilation, pad, out: three sizes each

TYPES: dict[str, int]
STRIP: int
F16: int
BF16: int

class Binary:
    def __init__(
        self,
        formula: int,
        a_type: int,
        b_type: int,
        out_type: int,
        a: tuple[float, int],
        b: tuple[float, int],
        out: tuple[float, int],
        lo: int,
        hi: int,
    ) -> None: ...
    def run(self, n: int, a: Buffer, a_step: int, b: Buffer, b_step: int, out: Buffer) -> None: ...

class Epilogue:
    columns: int
    def __init__(
        self,
        kind: int,
        rounding: int,
        out_type: int,
        columns: int,
        per_column: bool,
        scales_f32: Buffer | None,
        scales_f64: Buffer | None,
        multipliers: Buffer | None,
        shifts: Buffer | None,
        float_bias: Buffer | None,
        zero_point: int,
        lo: int,
        hi: int,
        lut: Buffer | None,
        residual: Binary | None,
    ) -> None: ...
    def run(
        self, acc: Buffer, acc_type: int, rows: int, columns: int, residual: Buffer | None, out: Buffer
    ) -> None: ...

class Calls:
    def again(
        self,
        a: Any,
        bias: Any,
        residual: Any,
        out: Any,
        epilogue: Any,
        terms: tuple[Any, ...],
    ) -> NDArray[Any] | None: ...
    def remember(
        self,
        a: Any,
        bias: Any,
        residual: Any,
        out: Any,
        epilogue: Any,
        terms: tuple[Any, ...],
        spare: int,
        run: Callable[[Any, Any, Any, Any], NDArray[Any]],
    ) -> None: ...

class Packed:
    def __init__(
        self,
        k: int,
        n: int,
        groups: int,
        quads: Buffer,
        zero_points: Buffer | None,
        column_sums: Buffer,
        column_products: Buffer,
        weight_sum: int,
    ) -> None: ...

class PackedS4:
    def __init__(
        self,
        weights: Buffer,
        k: int,
        n: int,
        k_stride: int,
        n_stride: int,
        block: int,
        scales: Buffer | None,
        zero_points: Buffer,
        nibbles: Buffer,
        sums: Buffer,
    ) -> None: ...

def packed_s4_bytes(k: int, n: int) -> int: ...
def gemm_s4(
    a: Buffer,
    a_type: int,
    first_row: int,
    rows: int,
    a_zero_point: int,
    weights: PackedS4,
    first_strip: int,
    strips: int,
    bias: Buffer | None,
    epilogue: Epilogue,
    residual: Buffer | None,
    out: Buffer,
) -> None: ...

class PackedS8:
    def __init__(self, k: int, n: int, block: int, quads: Buffer, scales: Buffer, zero_points: Buffer) -> None: ...

def gemm_f32s8(
    a: Buffer,
    first_row: int,
    rows: int,
    weights: PackedS8,
    first_strip: int,
    strips: int,
    epilogue: Epilogue,
    out: Buffer,
) -> None: ...
def ceiling(scheme: str, rounds: int) -> int: ...
def packed_bytes(k: int, n: int) -> int: ...
def packed_f32_floats(k: int, n: int) -> int: ...
def pack(
    weights: Buffer,
    kind: int,
    offset: int,
    k: int,
    n: int,
    k_stride: int,
    n_stride: int,
    group: int,
    zero_points: Buffer | None,
    quads: Buffer,
    stored: Buffer,
    sums: Buffer,
    products: Buffer,
    positive: Buffer,
    negative: Buffer,
) -> None: ...
def pack_f32(
    weights: Buffer, offset: int, k: int, n: int, k_stride: int, n_stride: int, group: int, packed: Buffer
) -> None: ...
def enter_state() -> int: ...
def leave_state(state: int) -> None: ...
def gemm(
    a: Buffer,
    is_signed: bool,
    saturating: bool,
    first_row: int,
    rows: int,
    a_zero_point: int,
    weights: Packed,
    first_strip: int,
    strips: int,
    bias: Buffer | None,
    epilogue: Epilogue,
    residual: Buffer | None,
    out: Buffer,
) -> None: ...
def gemm_f32(
    a: Buffer, first_row: int, rows: int, k: int, n: int, weights: Buffer, bias: Buffer | None, out: Buffer
) -> None: ...
def gemm_sequential(
    a: Buffer, first_row: int, rows: int, k: int, n: int, block: int, b: Buffer, accumulate: bool, out: Buffer
) -> None: ...
def gemm_f64(
    a: Buffer, columns: bool, m: int, first: int, rows: int, k: int, n: int, b: Buffer, accumulate: bool, out: Buffer
) -> None: ...
def gemm_planes(
    a: Buffer, first_row: int, rows: int, k: int, n: int, bits: int, planes: Buffer, out: Buffer, scratch: Buffer
) -> None: ...
def sum_f32(outer: int, k: int, inner: int, x: Buffer, out: Buffer) -> None: ...
def conv_chain(
    geometry: Geometry,
    batch: int,
    channels: int,
    out_channels: int,
    groups: int,
    order: int,
    depthwise: bool,
    lo: float,
    hi: float,
    x: Buffer,
    weights: Buffer,
    bias: Buffer | None,
    out: Buffer,
    first: int,
    last: int,
) -> None: ...
def scale_sums(
    formula: int,
    point_type: int,
    rows: int,
    columns: int,
    each: int,
    acc: Buffer,
    scales: Buffer,
    points: Buffer | None,
    sums: Buffer | None,
    factors: Buffer | None,
    bias: Buffer | None,
    lo: float,
    hi: float,
    out: Buffer,
) -> None: ...
def conv(
    geometry: Geometry,
    batch: int,
    channels: int,
    out_channels: int,
    groups: int,
    layout: int,
    a_type: int,
    a_zero_point: int,
    x: Buffer,
    weights: Packed | None,
    taps: Buffer | None,
    weights_f32: Buffer | None,
    bias: Buffer | None,
    epilogue: Epilogue | None,
    residual: Buffer | None,
    out: Buffer,
    first: int,
    last: int,
) -> None: ...
def pool(
    geometry: Geometry,
    pad_end: tuple[int, ...],
    batch: int,
    channels: int,
    layout: int,
    kind_of_data: int,
    kind: int,
    count_padding: bool,
    lo: int,
    hi: int,
    x: Buffer,
    out: Buffer,
) -> None: ...
def quantize(
    formula: int,
    outer: int,
    channels: int,
    inner: int,
    x: Buffer,
    scales: Buffer,
    zero_points: Buffer,
    lo: int,
    hi: int,
    out: Buffer,
    out_type: int,
) -> None: ...
def dequantize(
    outer: int, channels: int, inner: int, q: Buffer, kind: int, scales: Buffer, zero_points: Buffer, out: Buffer
) -> None: ...
def lut(x: Buffer, is_signed: bool, table: Buffer, out: Buffer, n: int) -> None: ...
def pack_int4(x: Buffer, out: Buffer, n: int) -> None: ...
def unpack_int4(packed: Buffer, is_signed: bool, out: Buffer, n: int) -> None: ...
def quantize_multiplier(real: float) -> tuple[int, int]: ...
def paths() -> tuple[str, ...]: ...
def available(path: int) -> bool: ...
def chosen() -> int: ...
def choose(path: int) -> bool: ...
def ops() -> tuple[str, ...]: ...
def present(op: int, path: int) -> bool: ...
def mask_cpuid() -> bool: ...
def cpuid_masked() -> bool | None: ...
def float_state() -> int: ...
def enter_float_state() -> int: ...
def set_float_state(state: int) -> None: ...

class Softmax:
    def __init__(
        self,
        formula: int,
        kind: int,
        out_kind: int,
        scale: float,
        beta: float,
        table: Buffer | None,
        inverse: float,
        zero_point: int,
    ) -> None: ...
    def run(self, first_row: int, rows: int, columns: int, x: Buffer, out: Buffer) -> None: ...

def gemm_s16(
    a: Buffer,
    first_row: int,
    rows: int,
    a_zero_point: int,
    weights: Packed,
    bias: Buffer | None,
    wide: bool,
    epilogue: Epilogue,
    residual: Buffer | None,
    out: Buffer,
) -> None: ...
def gemm_half(
    kind: int,
    a: Buffer,
    first_row: int,
    rows: int,
    k: int,
    n: int,
    weights: Buffer,
    bias: Buffer | None,
    out: Buffer,
) -> None: ...
def widen(kind: int, n: int, x: Buffer, out: Buffer) -> None: ...
def narrow(kind: int, n: int, x: Buffer, out: Buffer) -> None: ...
def dynamic_quantize(
    formula: int,
    first_row: int,
    rows: int,
    columns: int,
    x: Buffer,
    out: Buffer,
    scales: Buffer,
    zero_points: Buffer,
) -> None: ...
def fake_quantize(n: int, x: Buffer, scale: float, zero_point: int, lo: int, hi: int, out: Buffer) -> None: ...
def ranges(
    outer: int, channels: int, inner: int, x: Buffer, minima: Buffer, maxima: Buffer, totals: Buffer
) -> bool: ...
def histogram(n: int, x: Buffer, inverse: float, half: int, counts: Buffer, squares: Buffer) -> None: ...
def lut_s16(x: Buffer, table: Buffer, out: Buffer, n: int, shift: int) -> None: ...
def layer_norm_s16(
    first_row: int,
    rows: int,
    columns: int,
    x: Buffer,
    weights: Buffer,
    bias: Buffer | None,
    multiplier: int,
    shift: int,
    formula: int,
    variance_limit: int,
    epsilon: int,
    out: Buffer,
) -> None: ...

Place = tuple[int, int] | Buffer | None  # (base, offset in bytes), or memory that stays where it is

class Program:
    count: int
    def __init__(self, capacity: int) -> None: ...
    def workspace(self) -> int: ...
    def gemm(
        self,
        a: Place,
        is_signed: bool,
        rows: int,
        a_zero_point: int,
        weights: Packed,
        bias: Buffer | None,
        epilogue: Epilogue,
        residual: Place,
        out: Place,
    ) -> None: ...
    def cast(self, x: Place, kind: int, to_float: bool, n: int, out: Place) -> None: ...
    def products(
        self,
        a: Place,
        is_signed: bool,
        a_zero_point: int,
        b: Place,
        b_type: int,
        zero_points: Buffer | None,
        batch: int,
        m: int,
        k: int,
        n: int,
        a_step: int,
        b_step: int,
        transposed: bool,
        bias: Buffer | None,
        epilogue: Epilogue,
        out: Place,
    ) -> None: ...
    def gemm_f32(
        self, a: Place, rows: int, k: int, n: int, weights: Buffer, bias: Buffer | None, out: Place
    ) -> None: ...
    def conv(
        self,
        geometry: Geometry,
        batch: int,
        channels: int,
        out_channels: int,
        groups: int,
        layout: int,
        a_type: int,
        a_zero_point: int,
        x: Place,
        weights: Packed | None,
        taps: Buffer | None,
        weights_f32: Buffer | None,
        bias: Buffer | None,
        epilogue: Epilogue | None,
        residual: Place,
        out: Place,
    ) -> None: ...
    def chain(
        self,
        geometry: Geometry,
        batch: int,
        channels: int,
        out_channels: int,
        groups: int,
        order: int,
        depthwise: bool,
        lo: float,
        hi: float,
        x: Place,
        weights: Buffer,
        bias: Buffer | None,
        out: Place,
    ) -> None: ...
    def sums(
        self,
        formula: int,
        point_type: int,
        acc: Place,
        rows: int,
        columns: int,
        each: int,
        scale: Place,
        point: Place | None,
        sums: Buffer | None,
        factors: Buffer,
        bias: Buffer | None,
        lo: float,
        hi: float,
        out: Place,
    ) -> None: ...
    def pool(
        self,
        geometry: Geometry,
        pad_end: tuple[int, ...],
        batch: int,
        channels: int,
        layout: int,
        kind_of_data: int,
        kind: int,
        count_padding: bool,
        lo: int,
        hi: int,
        x: Place,
        out: Place,
    ) -> None: ...
    def binary(self, op: Binary, n: int, a: Place, a_step: int, b: Place, b_step: int, out: Place) -> None: ...
    def map(self, formula: int, n: int, a: Place, b: Place | None, out: Place) -> None: ...
    def dynamic(
        self, x: Place, formula: int, rows: int, columns: int, out: Place, scale: Place, zero_point: Place
    ) -> None: ...
    def scaled(self, scale: Place, zero_point: Place, by_image: bool) -> None: ...
    def gemm_scaled(
        self,
        a: Place,
        kind: int,
        rows: int,
        a_zero_point: int,
        weights: PackedS4 | PackedS8,
        rows_of: tuple[Any, ...] | None,
        zero_points: Place | None,
        out_stride: int,
        epilogue: Epilogue,
        out: Place,
    ) -> None: ...
    def layer_norm(
        self,
        x: Place,
        kind: int,
        rows: int,
        columns: int,
        weights: Buffer,
        bias: Buffer | None,
        multiplier: int,
        shift: int,
        epsilon: int,
        out_kind: int,
        lo: int,
        hi: int,
        out: Place,
    ) -> None: ...
    def phases(
        self,
        x: Place,
        images: int,
        given: tuple[int, int, int],
        made: tuple[int, int, int],
        stride: tuple[int, int, int],
        groups: int,
        bytes: int,
        out: Place,
    ) -> None: ...
    def split(self, x: Place, kind: int, n: int, high: Place, low: Place) -> None: ...
    def join(
        self,
        high: Place,
        low: Place,
        rows: int,
        columns: int,
        bias: Buffer | None,
        factors: Buffer | None,
        offsets: Buffer | None,
        epilogue: Epilogue | None,
        out: Place,
    ) -> None: ...
    def scale(
        self,
        to_float: bool,
        formula: int,
        outer: int,
        channels: int,
        inner: int,
        x: Place,
        scales: Buffer,
        zero_points: Buffer,
        lo: int,
        hi: int,
        kind: int,
        out: Place,
    ) -> None: ...
    def lut(self, x: Place, is_signed: bool, table: Buffer, n: int, out: Place) -> None: ...
    def transpose(self, x: Place, element: int, outer: int, rows: int, columns: int, out: Place) -> None: ...
    def copy(self, x: Place, runs: int, bytes: int, from_stride: int, to_stride: int, out: Place) -> None: ...
    def mean(
        self, x: Place, kind: int, zero_point: int, outer: int, count: int, inner: int, epilogue: Epilogue, out: Place
    ) -> None: ...
    def softmax(self, x: Place, op: Softmax, rows: int, columns: int, out: Place) -> None: ...

def forked() -> None: ...

class Crew:
    def __init__(self, threads: int) -> None: ...
    def serve(self, thread: int) -> None: ...
    def stop(self) -> None: ...

class Run:
    def __init__(
        self,
        program: Program,
        crew: Crew | None,
        arena: Buffer,
        workspaces: Buffer,
        workspace_bytes: int,
        needs: tuple[int, ...],
    ) -> None: ...
    def run(self, arrays: tuple[Buffer, ...], first: int, last: int) -> bool: ...
