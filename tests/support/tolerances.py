"""Tolerances that several tests share, for images in [0, 1], each with its reason."""

# Weights that were read from a file lie elsewhere in memory than those in use, and kernels may sum in another order
# there. In float32 that changes the last digits; in bfloat16, of 8 bits, it can change the last bit of every layer.
RELOADED = {"fp32": {"atol": 1e-4, "rtol": 0}, "bf16": {"atol": 0.05, "rtol": 0}}

# Half a step of eight bits, and what float32 rounds otherwise in a batch of another size.
STORED_IN_8_BITS = 0.5 / 255 + 1e-4
