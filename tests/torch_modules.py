"""Small PyTorch modules of many kinds, by name: what users train. Each is (how to make it, shapes of its inputs); an input whose
shape ends in a string takes integers below that number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

IMAGE, ROWS, TOKENS, SIGNAL = (4, 3, 10, 10), (6, 8), (4, 5, 8), (4, 4, 16)
MODULES: dict[str, tuple[Callable[[], Any], tuple[tuple[Any, ...], ...]]] = {}
S, C = nn.Sequential, nn.Conv2d


class Of(nn.Module):  # type: ignore[misc]
    """Parts and a function of them and the inputs."""

    def __init__(self, function: Callable[..., Any], *parts: Any):
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs: Any) -> Any:
        return self.function(*self.parts, *inputs)


class Held(nn.Module):  # type: ignore[misc]
    """A parameter beside the layers: positions, scales of a layer, a class token."""

    def __init__(self, *shape: int):
        super().__init__()
        self.values = nn.Parameter(torch.rand(*shape) + 0.5)

    def forward(self) -> Any:
        return self.values


def note(name: str, make: Callable[[], Any], *shapes: tuple[Any, ...]) -> None:
    MODULES[name] = make, shapes


def built(name: str) -> tuple[Any, tuple[Any, ...]]:
    """The module in evaluation mode, its statistics and gains made uneven, and its inputs."""
    torch.manual_seed(sum(map(ord, name)))
    make, shapes = MODULES[name]
    module = make().eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
        gain = getattr(part, "weight", None)
        if isinstance(gain, torch.Tensor) and gain.ndim == 1 and not isinstance(part, nn.PReLU):
            with torch.no_grad():
                gain.uniform_(0.5, 1.5)
                part.bias.uniform_(-0.3, 0.3)
    made = [
        torch.randint(0, int(shape[-1]), shape[:-1]) if isinstance(shape[-1], str) else torch.randn(*shape)
        for shape in shapes
    ]
    return module, tuple(made)


def _between(act: Any, wide: int = 8) -> Callable[[], Any]:
    return lambda: S(C(3, 8, 3), act(), C(wide, 4, 1))


def _squeeze(wide: int, gate: Any = nn.Sigmoid) -> Any:
    excite = S(nn.AdaptiveAvgPool2d(1), C(wide, wide // 2, 1), nn.ReLU(), C(wide // 2, wide, 1), gate())
    return Of(lambda inner, x: x * inner(x), excite)


def _normed(into: int, out: int, kernel: int, act: Any = nn.ReLU, **more: Any) -> Any:
    return S(C(into, out, kernel, bias=False, **more), nn.BatchNorm2d(out), act())


# ---- convolutions and products

note("conv1d", lambda: S(nn.Conv1d(4, 6, 3, dilation=2), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 5, 3, 2)), SIGNAL)
note(
    "conv3d",
    lambda: S(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 3, 1)),
    (4, 2, 6, 6, 6),
)
note("transposed 1d", lambda: S(nn.ConvTranspose1d(4, 6, 3, 2), nn.ReLU(), nn.Conv1d(6, 2, 3)), (4, 4, 9))
note(
    "transposed",
    lambda: S(nn.ConvTranspose2d(3, 6, 3, 2, 1, 1), nn.BatchNorm2d(6), nn.ReLU(), C(6, 2, 3)),
    (4, 3, 6, 6),
)
note("transposed 3d", lambda: S(nn.ConvTranspose3d(2, 4, 2, 2), nn.ReLU()), (4, 2, 4, 4, 4))
note(
    "transposed depthwise", lambda: S(nn.ConvTranspose2d(3, 3, 4, 2, 1, groups=3, bias=False), C(3, 4, 1)), (4, 3, 6, 6)
)
note(
    "depthwise",
    lambda: S(C(3, 6, 3, groups=3), nn.ReLU6(), C(6, 6, 3, padding=1, groups=6), nn.ReLU6(), C(6, 4, 1)),
    IMAGE,
)
note("grouped dilated", lambda: S(C(3, 8, 3, padding=2, dilation=2), nn.ReLU(), C(8, 8, 3, 2, 1, groups=2)), IMAGE)
note(
    "padding modes",
    lambda: S(
        C(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        C(8, 4, 3, padding=1, padding_mode="replicate"),
        C(4, 4, 3, padding=1, padding_mode="circular"),
    ),
    IMAGE,
)
note(
    "uneven padding",
    lambda: S(
        nn.ZeroPad2d((0, 1, 0, 1)),
        C(3, 8, 3, 2),
        nn.ReLU(),
        nn.ConstantPad2d((1, 0, 2, -1), 0.3),
        C(8, 4, 2),
        nn.ReflectionPad2d(1),
    ),
    IMAGE,
)
note("padding same", lambda: S(C(3, 8, 4, padding="same"), nn.ReLU(), C(8, 4, (2, 3), padding="same")), IMAGE)
note("linear of 4 dimensions", lambda: S(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4, bias=False)), (4, 2, 3, 8))
note("one output", lambda: S(nn.Linear(8, 1), nn.Sigmoid()), ROWS)
note("bilinear", lambda: nn.Bilinear(4, 5, 3), (6, 4), (6, 5))
note(
    "two activations multiplied",
    lambda: Of(lambda a, b, c, x: c(a(x) @ b(x).transpose(1, 2)), nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(5, 3)),
    TOKENS,
)
note(
    "einsum",
    lambda: Of(lambda a, b, x: torch.einsum("bij,bkj->bik", a(x), b(x)), nn.Linear(8, 6), nn.Linear(8, 6)),
    TOKENS,
)
note(
    "reparametrized",
    lambda: S(
        nn.utils.parametrizations.weight_norm(C(3, 6, 3)),
        nn.ReLU(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4)),
    ),
    IMAGE,
)

# ---- normalizations

note("batch norm behind relu", lambda: S(C(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), C(8, 4, 1)), IMAGE)
note("batch norm first", lambda: S(nn.BatchNorm2d(3), nn.ReLU(), C(3, 8, 3), nn.BatchNorm2d(8)), IMAGE)
note("batch norm of rows", lambda: S(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)), ROWS)
note("layer norm", lambda: S(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8)), TOKENS)
note("layer norm of images", lambda: S(C(3, 4, 3), nn.LayerNorm([4, 8, 8], bias=False), nn.ReLU(), C(4, 2, 1)), IMAGE)
note("group norm", lambda: S(C(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), C(8, 4, 1)), IMAGE)
note("instance norm", lambda: S(C(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), C(8, 4, 1)), IMAGE)
note(
    "rms norm",
    lambda: Of(
        lambda a, n, b, x: b(n(a(x))), nn.Linear(8, 16), nn.RMSNorm(16, elementwise_affine=False), nn.Linear(16, 8)
    ),
    TOKENS,
)
note("local response norm", lambda: S(C(3, 8, 3), nn.LocalResponseNorm(3), C(8, 4, 1)), IMAGE)

# ---- functions of one element

for _act in (nn.PReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Mish,
             nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink):  # fmt: skip
    note(f"act {_act.__name__}", _between(_act), IMAGE)
note("act slopes a channel", _between(lambda: nn.PReLU(8)), IMAGE)
note("act GLU", _between(lambda: nn.GLU(1), 4), IMAGE)
note("act threshold", _between(lambda: nn.Threshold(0.1, 0.0)), IMAGE)
note(
    "chain",
    lambda: Of(
        lambda a, b, x: b(
            (a(x) ** 2 + 1e-3).sqrt() + (a(x).relu() + 1).rsqrt() + (-a(x).abs()).exp() + a(x).sin().atan()
        ),
        C(3, 8, 3),
        C(8, 4, 1),
    ),
    IMAGE,
)
note(
    "clamps",
    lambda: Of(lambda a, b, x: b(a(x).clamp(-0.5, 0.3).clamp(max=0.2)).clamp(min=0.1), C(3, 6, 3), C(6, 3, 1)),
    IMAGE,
)

# ---- pools, resizing, movement

for _pool in (nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 1, dilation=2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
              nn.AdaptiveAvgPool2d((3, 4)), nn.AdaptiveMaxPool2d(1), nn.LPPool2d(2, 2)):  # fmt: skip
    note(f"pool {_pool}", lambda pool=_pool: S(C(3, 8, 3), nn.ReLU(), pool, C(8, 4, 1)), IMAGE)  # type: ignore[misc]
for _mode in ("nearest", "bilinear", "bicubic"):
    note(
        f"upsampled {_mode}",
        lambda mode=_mode: S(C(3, 8, 3), nn.Upsample(scale_factor=2, mode=mode), C(8, 4, 1)),
        IMAGE,
    )  # type: ignore[misc]
note(
    "upsampled corners",
    lambda: S(C(3, 8, 3), nn.Upsample((17, 15), mode="bilinear", align_corners=True), C(8, 4, 1)),
    IMAGE,
)
note("pixels shuffled", lambda: S(C(3, 8, 3), nn.PixelShuffle(2), C(2, 4, 1), nn.PixelUnshuffle(2), C(16, 3, 1)), IMAGE)
note(
    "concat and chunks",
    lambda: Of(
        lambda a, b, c, x: c(torch.cat([a(x), b(x).relu(), x], 1)).chunk(2, 1)[1] * 2,
        C(3, 4, 3, padding=1),
        C(3, 5, 1),
        C(12, 4, 1),
    ),
    IMAGE,
)
note(
    "moves",
    lambda: Of(
        lambda a, b, x: b(torch.roll(a(x), (1, 2), (2, 3)).flip(3)[:, [0, 2, 2]].repeat(1, 2, 1, 1)),
        C(3, 6, 3),
        C(6, 3, 1),
    ),
    IMAGE,
)
note("unfolded", lambda: Of(lambda a, b, x: b(F.unfold(a(x), 3)), C(3, 4, 3), nn.Conv1d(36, 3, 1)), IMAGE)
note(
    "sampled",
    lambda: Of(lambda a, x, g: F.grid_sample(a(x), g.tanh(), align_corners=False), C(3, 6, 3)),
    IMAGE,
    (4, 5, 5, 2),
)

# ---- two branches, reductions

for _op in ("add", "mul", "sub", "div", "maximum"):
    note(
        f"branches {_op}",
        lambda op=_op: Of(
            lambda a, b, c, x: c(getattr(torch, op)(a(x), b(x).sigmoid() + 0.5)), C(3, 8, 3), C(3, 8, 3), C(8, 4, 1)
        ),
        IMAGE,
    )  # type: ignore[misc]
for _reduction in ("sum", "amax", "var", "logsumexp", "prod", "cumsum"):
    note(
        f"reduced {_reduction}",
        lambda name=_reduction: Of(lambda a, b, x: b(getattr(torch, name)(a(x), 1)), nn.Linear(8, 6), nn.Linear(6, 3)),
        TOKENS,
    )  # type: ignore[misc]
note("norm of rows", lambda: Of(lambda a, b, x: b(F.normalize(a(x), dim=-1)), nn.Linear(8, 6), nn.Linear(6, 3)), ROWS)
note("largest", lambda: Of(lambda a, x: torch.topk(a(x), 3)[0], nn.Linear(8, 6)), ROWS)
note("chosen", lambda: Of(lambda a, b, x: torch.where(a(x) > 0, a(x), 0.2 * b(x)), C(3, 6, 3), C(3, 6, 3)), IMAGE)
note("softmax", lambda: S(C(3, 6, 3), nn.Softmax(1), C(6, 3, 1)), IMAGE)

# ---- sequences

note("attention", lambda: Of(lambda m, x: m(x, x, x), nn.MultiheadAttention(8, 2, batch_first=True)), TOKENS)
note(
    "attention of another", lambda: Of(lambda m, x, y: m(x, y, y)[0], nn.MultiheadAttention(8, 2)), (5, 4, 8), (6, 4, 8)
)
note("encoder", lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"), TOKENS)
note("encoder norm first", lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), TOKENS)
note(
    "embedding",
    lambda: Of(lambda e, p, a, i: a(e(i) + p()).mean(1), nn.Embedding(20, 8), Held(5, 8), nn.Linear(8, 4)),
    (4, 5, "20"),
)
note(
    "embedding beside numbers",
    lambda: Of(lambda e, a, x, i: a(e(i)) + x, nn.Embedding(20, 8), nn.Linear(8, 4)),
    (4, 4),
    (4, "20"),
)
for _cell in (nn.LSTM, nn.GRU, nn.RNN):
    note(
        f"sequence {_cell.__name__}",
        lambda cell=_cell: Of(
            lambda r, a, x: a(r(x)[0]), cell(8, 6, batch_first=True, bidirectional=True), nn.Linear(12, 3)
        ),
        TOKENS,
    )  # type: ignore[misc]

# ---- blocks, sharing, interfaces

note("squeeze and excite", lambda: S(C(3, 8, 3), nn.ReLU(), _squeeze(8), C(8, 4, 1)), IMAGE)
note(
    "inverted residual",
    lambda: Of(
        lambda h, m, x: h(x + m(x)),
        C(3, 5, 1),
        S(
            _normed(3, 12, 1, nn.ReLU6),
            _normed(12, 12, 3, nn.ReLU6, padding=1, groups=12),
            _normed(12, 3, 1, nn.Identity),
        ),
    ),
    IMAGE,
)
note(
    "mobilenet v3",
    lambda: S(
        _normed(3, 8, 3, nn.Hardswish, stride=2),
        _normed(8, 8, 3, nn.Hardswish, padding=1, groups=8),
        _squeeze(8, nn.Hardsigmoid),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 12),
        nn.Hardswish(),
        nn.Dropout(),
        nn.Linear(12, 5),
    ),
    IMAGE,
)
note(
    "resnext",
    lambda: Of(
        lambda s, d, m, x: (m(s(x)) + d(s(x))).relu(),
        S(_normed(3, 8, 3), nn.MaxPool2d(3, 2, 1)),
        _normed(8, 8, 1, nn.Identity),
        S(_normed(8, 8, 1), _normed(8, 8, 3, nn.Identity, padding=1, groups=4)),
    ),
    IMAGE,
)
note(
    "convnext",
    lambda: Of(
        lambda a, n, b, g, x: x + g() * b(n(a(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
        C(3, 3, 7, padding=3, groups=3),
        nn.LayerNorm(3),
        S(nn.Linear(3, 12), nn.GELU(), nn.Linear(12, 3)),
        Held(3, 1, 1),
    ),
    IMAGE,
)
note("one layer twice", lambda: Of(lambda a, b, x: b(a(a(x).relu()).relu()), nn.Linear(8, 8), nn.Linear(8, 3)), ROWS)
note(
    "one layer, two inputs", lambda: Of(lambda a, b, x, y: b(a(x).relu() - a(y)), C(3, 6, 3), C(6, 2, 1)), IMAGE, IMAGE
)
note(
    "several outputs",
    lambda: Of(lambda a, b, x: {"one": b(a(x).relu()), "two": [a(x), x * 2]}, C(3, 6, 3), C(6, 2, 1)),
    IMAGE,
)
note("channels last", lambda: S(C(3, 8, 3), nn.ReLU(), C(8, 4, 1)).to(memory_format=torch.channels_last), IMAGE)
