"""tanh of float32 as MKL's vector library computes it (vmsTanh at high accuracy), which PyTorch calls on x86-64.

The bits depend on the code that MKL chooses, not on a value's place in its vector. Both variants split ``|x|`` at quarters of
an octave (the exponent and two bits of the mantissa) and take a polynomial of degree 6 around the middle of each part.
"""

from __future__ import annotations

import numpy as np

from hwq.graph import Array
from hwq.numerics import fused_multiply_add

__all__ = ["VARIANTS", "tanh"]

f32 = np.float32
# Bits of float32 below the part's number, which starts at 1/8 or 0.046875: everything below is the first part.
SHIFT, WIDE_FIRST, NARROW_FIRST = 21, 0x3E000000 >> 21, 0x3D400000 >> 21
# AVX2: a polynomial in float64, rounded once. Coefficients of (|x| - middle)^0 to ^6, float64's bits, a row a part; the first
# row has middle 0 and is added to |x|. A linear programme fitted them to the outputs of torch 2.13.0 (MKL 2024.2): two
# inequalities per argument, largest margin. Every margin is above what the evaluation here may lose, some 2^-52 of the result.
WIDE = """
    0000000000000000 3dda8c677a8f6ad0 be6defd8884c7530 bfd5553f7294064b bf276cc02086c68b 3fc16be24d90dc09 bf945bc5b39bad69
    3fc1e1dd055cd98e 3fef601caf82b9e8 bfc18883bc2acf6d bfd3b13451ebe0c5 3fb6b174f4663f6f 3fbc7d12c7024c3d bfa4d6803fdbdb5c
    3fc5c93072279eee 3fef12aff815bf03 bfc5279fe828e899 bfd2ea40486fab06 3fbafb6cfacc3633 3fba425bdd9f3f3c bfb278c8e5ccb657
    3fc9a5f1be7665e2 3feeb7159ba47d47 bfc89e50f3780528 bfd202a2fbe126b2 3fbed94a5b0b75f8 3fb7365ee6d24a3e bfb33be209f05a4c
    3fcd7665cf9bbac3 3fee4dfb167a0348 bfcbe6cb857ed827 bfd0fdf097ecb57f 3fc11f5fe5db6e6e 3fb440707f986aed bfac930ddfdb9c17
    3fd18a399e6b4496 3fed98b36d94086c bfd038f721dc9c7f bfce91ee67f0c8b6 3fc3316398d95cd6 3fae3d0670da474f bfb2321e5bf13428
    3fd52c2c561d848b 3fec7f723532bdb5 bfd2daf9aab33898 bfc985876fcb7ff1 3fc503422356f3da 3fa054f4af4146fe bfb15ac528b1af5d
    3fd8a87e14b33ca4 3feb3ff2ecca23fb bfd4ff714abbb332 bfc4271f1e18e480 3fc5c36125491e24 3f783796e974581a bfb1120d39290398
    3fdbfae6ab97242e 3fe9e23ae0ee8ef6 bfd6a1d3ae9089e0 bfbd71f68086de1e 3fc5865290b4f6b1 bf91960bba501118 bfad367b22ce180e
    3fe05086f2f6de02 3fe7aeae682c60a2 bfd825df8fefb261 bfabd0b7d5386a51 3fc3a4dc8a3ccd2f bfa643407e072b3e bfa32e1ea9f22feb
    3fe3157dfe9f718f 3fe49e6bf26b2471 bfd897d27a7f5b1b 3f8d76aaa1d5f6d3 3fbe981341bfbd2f bfaf85bd7101b44a bf873d34c7228e9c
    3fe5788ff10d2513 3fe197fcd9979b48 bfd79c0e0ce67f68 3fb072cc4e346054 3fb4716ade0498ac bfb00ac258d6017f 3f7dba4545e498d2
    3fe77d838e3406d3 3fdd834d2b704eed bfd5aa21b19f153f 3fb84349a3f66037 3fa626a81e4a8e2d bfab2a5df92e1478 3f915ae0aa05353a
    3fe9e5cb5ba49a78 3fd615002940e142 bfd1defac2f83c4a 3fbc68d84cd223ae 3f6ac4fdc83bf5a3 bfa06759494d8e76 3f92e8d660dbe50c
    3fec278a52a4b205 3fccea744b38b909 bfc970e07d032986 3fb97d80ddd17517 bf95dd71f2f6bd5e bf837c331e28a7dd 3f867dfdf97a2768
    3fed9c6fafe5e124 3fc265e338354179 bfc10646d2c2b13f 3fb33df21fa958c3 bf99d2bdb65dd029 3f56d9c0eab5b888 3f70e8fc67af1085
    3fee8789ecebf519 3fb6fcfa6b7ff71e bfb5ee8918580e33 3faa85c1aa68ebc8 bf955d6ce0a16030 3f72d88c27ab6c6f 3f45622869500837
    3fef4bfd6c288bde 3fa6410891f2709f bfa5c3d887b12815 3f9bbce5d4d36e21 bf893cf45c1678ba 3f704a06caf6b8e4 bf476f08b9d0455e
    3fefbd509ae7d0b2 3f909a7a8e1eb36c bf9077e0c6896be5 3f8599473061a9f1 bf74e3b7a2610eb9 3f5f5f5871a20e55 bf41e0c751bb2148
    3fefe76795d3b7dd 3f788ef6e4a7f783 bf787c168d0a597a 3f703963dcb8bf5e bf600767ed442bdc 3f493f73a6abcd4a bf2fefa63bd49313
    3feff6f17a7575c6 3f621a7b4431a836 bf62155b824b3154 3f580e724c69d328 bf47f3400d19939c 3f332dd83135e3a2 bf1915e97a227889
    3feffdfa72225709 3f402c03ca701394 bf402afb6a4a36ef 3f358604c11d9896 bf25811376a5aaac 3f11e7e396d0be32 bef7bbdaff2c8172
    3fefffb9f2fdf168 3f1183475e02a612 bf11831e4a02e917 3f07529a8321632b bef75244b4ccc3bd 3ee3762b4d6012ef bec9e54654c92fb2
    3feffff684ff0803 3ee2f61b3b7caa4b bee2f612bf904487 3ed94101289abf66 bec94155dc52e2b7 3eb514f855a48d58 be9c12d1ead63171
    3feffffeb78a3f8e 3eb4877a472720d3 beb4876a2ff4c6ec 3eab57a52a6eb4e6 be9b5a8ceb6fa11c 3e86d3c4d6fecc40 be6e269dbf411f30
    3fefffffe8ed5690 3eb229ac0fe83be2 3ee8a6c050a5c62b 3f07324afd04b2ef 3f1396c4b91b48cd 3f0f16a0d30f1df2 3ef2d79ae9b71533
"""
# AVX-512: float32 with fused multiply-adds, the constant in two floats. float32's bits of c0, its rest, c1 to c6, a row a part;
# the first has middle 0. Published by Intel (intel-graphics-compiler, IMF/FP32/tanh_s_ha.cl, (C) 2024, MIT licence).
NARROW = """
    00000000 00000000 3f800000 b0343c7b beaaaaa5 b76dd6b9 3e0910e9 bc0e2f66
    3d6fb9c9 b0a1501e 3f7f1f84 bd6ee69d beab0612 be1c276d 43761143 460bda12
    3d8fc35f b11d0b9e 3f7ebd11 bd8f0da7 bea7f01f 3c1dcf2f 4165ecdc 43d638ef
    3daf9169 af932f10 3f7e1e5f bdae477d bea4e120 3dc1a78d c190f756 c3e11c3e
    3dcf49ab 30fa467c 3f7d609f bdcd2a1f bea387b7 3d96f985 c08c097d c2baa4e9
    3deee849 31249ef0 3f7c842d bdeba80d bea15962 3da2b61b c02ba813 c249da2d
    3e0f0ee8 312b9ae0 3f7b00e5 be0c443b be9d57f7 3dc13397 bf7f6bda c1859b82
    3e2e4984 b1dd8650 3f789580 be293cf3 be976b5a 3dd2f670 3f2b1dc0 40dd5b57
    3e4d2f8e b044cc00 3f75b8ad be44f282 be90230d 3df48a0a 3ece105d 40494640
    3e6bb32e 31f9ba98 3f726fd9 be5f3651 be880dff 3e06c5a8 3f426a94 40c730a8
    3e8c51cd b0ca4580 3f6cc59b be81c7c0 be7479b3 3e1a3aba badb0dc4 bf0f160e
    3ea96163 b21e2644 3f63fb92 be96d7ca be4c3d88 3e27c405 3da43b17 3e30e76f
    3ec543f1 b234cc14 3f59ff97 bea7fb8e be212482 3e2e78d0 bd51ab88 bea81387
    3edfd735 32397534 3f4f11d7 beb50e9e bdeb8cba 3e2c3e44 bcaea23d bdb26a1c
    3f028438 b2d0938e 3f3d7573 bec12efe bd5e78ad 3e1d3097 bd3b6d8d bd351e57
    3f18abf0 b1303240 3f24f360 bec4be92 3c6b5e6e 3df4a8f4 bd6caaad bb4c01a0
    3f2bc480 b2ef278a 3f0cbfe7 bebce070 3d839143 3da38508 bd795bed 3c1d7bfb
    3f3bec1c 32e33e9c 3eec1a69 bead510e 3dc21ee1 3d31416a bd5fddda 3c722cd1
    3f4f2e5b b20b98c0 3eb0a801 be8ef7d6 3de347af 3b562657 bd038f3b 3c973f1c
    3f613c53 b2d5b8c2 3e6753a2 be4b8704 3dcbec96 bcaeeac9 bc1cad63 3c33a31b
    3f6ce37d 32fe70b8 3e132f1a be083237 3d99ef2d bcce9419 3abb4766 3b862ef4
    3f743c4f 32cec21a 3db7e7d3 bdaf7449 3d542ea1 bcaaeac4 3b95f10b 3a27b3d0
    3f7a5feb 32c28572 3d320845 bd2e1ec4 3cdde701 bc49e7d0 3b825873 ba3b5907
    3f7dea85 b2230d78 3c84d3d4 bc83bf06 3c2cca67 bba71ddd 3afaea66 ba0efc22
    3f7f3b3d b2a2c238 3bc477b7 bbc3e0b5 3b81cb27 bb003b0e 3a49f878 b97f9f0f
    3f7fb78c b2315220 3b10d3da bb10aadc 3ac073a1 ba3f9a05 39996bf3 b8c8af50
    3f7fefd4 b2dddb64 3a01601e ba0157db 39ac3032 b92c08a7 388f3e6c b7bdddfb
    3f7ffdd0 b2d020d0 388c1a3b b88c18f2 383a94d9 b7ba9232 371bb0e3 b64f2950
    3f7fffb4 321fe128 3717b0da b717b096 36ca081d b64a0b0f 35a8a5e6 b4e085b1
    3f7ffff6 b2875bb0 35a43bce b5a43bae 355abd4c b4dac169 34369b17 b3731dfa
    3f7fffff 32fa6146 338306c6 b383012c 332b3cb6 b2ab78ac 322487b0 b15a1f04
"""
# The first argument from which on every result is 1, 9.0108404.
ONE = np.uint32(0x41102C67)


def _table(text: str, word: str, kind: type[np.floating]) -> Array:
    rows = [[int(one, 16) for one in line.split()] for line in text.strip().splitlines()]
    return np.asarray(rows, word).view(kind)


def _middles(first: int, count: int) -> Array:
    """Centres of the parts `first` to ``first + count - 1``, and 0 for the one below `first`: exact in float32."""
    ends = (np.arange(first, first + count + 1, dtype=np.uint32) << SHIFT).view(f32)
    return np.concatenate([[f32(0)], (ends[:-1] + ends[1:]) * f32(0.5)]).astype(f32)


WIDE_C, NARROW_C = _table(WIDE, "<u8", np.float64), _table(NARROW, "<u4", np.float32)
WIDE_MIDDLES = _middles(WIDE_FIRST, len(WIDE_C) - 1).astype(np.float64)
NARROW_MIDDLES = _middles(NARROW_FIRST + 1, len(NARROW_C) - 1)


def _wide(bits: Array) -> Array:
    part = np.maximum((bits >> SHIFT).astype(np.int64) - WIDE_FIRST + 1, 0)
    x = bits.view(f32).astype(np.float64)
    s, c = x - WIDE_MIDDLES[part], WIDE_C[part]
    made = c[:, 6]
    for power in range(5, 0, -1):
        made = made * s + c[:, power]
    return (made * s + np.where(part == 0, x, c[:, 0])).astype(f32)


def _narrow(bits: Array) -> Array:
    part = np.maximum((bits >> SHIFT).astype(np.int64) - NARROW_FIRST, 0)
    c = NARROW_C[part]
    s = bits.view(f32) - NARROW_MIDDLES[part]  # exact: both lie on the argument's or a finer grid
    made = c[:, 7]
    for power in range(6, 2, -1):
        made = fused_multiply_add(made, s, c[:, power])
    made = fused_multiply_add((made * s).astype(f32), s, c[:, 1])
    return (fused_multiply_add(s, c[:, 2], made) + c[:, 0]).astype(f32)


VARIANTS = {"avx2": _wide, "avx512": _narrow}


def tanh(x: Array, variant: str) -> Array:
    """MKL's tanh.

    Parameters
    ----------
    x : float32 array
    variant : {"avx2", "avx512"}
        The code that MKL runs: ``avx512`` on Intel CPUs with AVX-512, ``avx2`` on Intel CPUs without and on AMD's.

    Returns
    -------
    float32 array
        Equal to torch 2.13.0's ``torch.tanh`` in all 2^32 arguments; a NaN stays one, whatever its bits.
    """
    x = np.asarray(x, f32)
    flat = np.ascontiguousarray(x).reshape(-1)
    bits = np.minimum(np.abs(flat).view(np.uint32), ONE)
    made = np.where(bits == ONE, f32(1), VARIANTS[variant](bits))
    made = np.where(np.isnan(flat), f32(np.nan), np.copysign(made, flat))
    return made.reshape(x.shape).astype(f32)
