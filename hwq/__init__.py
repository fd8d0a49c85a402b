"""What a quantization plan computes, bit for bit, and what it costs, before any hardware exists."""

__version__ = "0.1.0"
