"""Rewrites of the float model before it is quantized, and the rounding of its weights against data.

`sequence` runs a plan's transforms in their order: `equalization`, `smoothing`, `clipping`, `awq`. `channels` says where a
factor for each channel can be moved. `reconstruction` rounds weights and corrects biases layer by layer, after them.
"""
