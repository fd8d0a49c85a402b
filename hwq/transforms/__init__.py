"""Rewrites of the float model before it is quantized, and the rounding of its weights against data.

`equalization` moves ranges between layers, `reconstruction` rounds weights and corrects biases layer by layer.
"""
