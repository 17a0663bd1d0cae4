"""Kernels for NVIDIA's GPUs: CUDA C, launched by CuPy, or run by an emulator where there is no GPU."""
