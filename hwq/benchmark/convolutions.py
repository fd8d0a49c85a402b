"""Convolutions of the kernel benchmark: the cases, and for each of them ours and every other runtime's contender."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np

from hwq import kernels
from hwq.benchmark import litert, onnxruntime
from hwq.benchmark.products import exact, requantized
from hwq.benchmark.rounds import Contender
from hwq.kernels.operands import Array

__all__ = ["CASES", "Convolution"]


@dataclass(frozen=True)
class Convolution:
    """One square image of `side`, channel-last, padded so that every `stride`-th position has an output; depthwise without `outputs`."""

    side: int
    channels: int
    kernel: int
    outputs: int = 0
    stride: int = 1

    @property
    def name(self) -> str:
        """``conv 3x3 56x56x64->128 stride 2``."""
        kind = "conv" if self.outputs else "depthwise"
        made = f"->{self.outputs}" if self.outputs not in {0, self.channels} else ""
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return f"{kind} {self.kernel}x{self.kernel} {self.side}x{self.side}x{self.channels}{made}{stride}"

    @property
    def out_side(self) -> int:
        """Output positions in a row."""
        return -(-self.side // self.stride)

    @property
    def macs(self) -> int:
        """Multiply-accumulates, those with padding counted."""
        depth = self.channels if self.outputs else 1
        return self.out_side**2 * (self.outputs or self.channels) * self.kernel**2 * depth

    @property
    def pads(self) -> tuple[int, int]:
        """Rows of padding before and behind: TFLite's SAME."""
        total = max((self.out_side - 1) * self.stride + self.kernel - self.side, 0)
        return total // 2, total - total // 2

    def contenders(self) -> list[Contender]:
        """Ours first, then every runtime that is installed."""
        rng = np.random.default_rng(self.macs)
        groups = 1 if self.outputs else self.channels
        n, (before, behind), strides = self.outputs or self.channels, self.pads, (self.stride, self.stride)
        x = rng.integers(-128, 128, (1, self.side, self.side, self.channels)).astype(np.int8)
        w = rng.integers(-127, 128, (n, self.kernel, self.kernel, self.channels // groups)).astype(np.int8)
        finish, want, scales = requantized(self._accumulators(x, w), n)
        pads = (before, before, behind, behind)
        packed, out = kernels.pack_conv(w, groups=groups, layout="OHWI"), np.empty(want.shape, np.int8)
        unsigned, second = x.view(np.uint8) ^ 0x80, np.empty(want.shape, np.int8)

        def ours(image: Array, zero: int, made: Array) -> Array:
            return kernels.conv2d(
                image,
                packed,
                strides=strides,
                pads=pads,
                layout="NHWC",
                a_zero_point=zero,
                epilogue=finish,
                out=made,
                wrap=True,
            )

        scheme = "int8" if self.outputs else None
        # AVX2 takes 3 x 3 with stride 1 by Winograd's F(4x4, 3x3), small images by F(2x2, 3x3): 36 products stand for 144, 16
        # for 36. AVX-512 VNNI's F(4x4, 3x3) multiplies by another instruction than the loop beside it: its share may pass 1.
        tiles = (self.kernel, self.stride) == (3, 1) and kernels.isa() == "avx2"
        economy = (36 / 16 if self.side < 10 else 144 / 36) if tiles else 1.0
        found = [
            Contender("hwq s8s8", lambda: ours(x, 0, out), want, 0, scheme, True, economy),
            Contender("hwq u8s8", lambda: ours(unsigned, 128, second), want, 0, scheme, True, economy),
        ]
        with contextlib.suppress(ImportError):
            for name, run, shift in onnxruntime.convolutions(x, w, scales, strides, pads, groups):
                found.append(Contender(name, run, want.astype(np.int16) + shift))
        with contextlib.suppress(ImportError):
            sides = (self.out_side, self.out_side)
            call = litert.convolution(x, w, scales, strides, sides, not self.outputs)
            found.append(Contender("LiteRT s8s8", call, want))
        return found

    def _accumulators(self, x: Array, w: Array) -> Array:
        """Tap by tap in int64."""
        before, behind = self.pads
        padded = np.pad(x, ((0, 0), (before, behind), (before, behind), (0, 0)))
        reach = (self.out_side - 1) * self.stride + 1
        acc = np.zeros((1, self.out_side, self.out_side, len(w)), np.int64)
        for i in range(self.kernel):
            for j in range(self.kernel):
                part = padded[:, i : i + reach : self.stride, j : j + reach : self.stride]
                if self.outputs:
                    acc += exact(part, w[:, i, j].T)
                else:
                    acc += part.astype(np.int64) * w[:, i, j, 0]
        return acc


CASES = (
    Convolution(56, 64, 1, 64),
    Convolution(14, 256, 1, 1024),
    Convolution(7, 512, 1, 2048),
    Convolution(56, 64, 3, 64),
    Convolution(14, 256, 3, 256),
    Convolution(7, 512, 3, 512),
    Convolution(56, 64, 3, 128, 2),
    Convolution(14, 256, 3, 512, 2),
    Convolution(112, 32, 3),
    Convolution(14, 512, 3),
    Convolution(112, 32, 3, stride=2),
)
