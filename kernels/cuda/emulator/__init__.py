"""CUDA's model of blocks and warps on one thread of a CPU, for tests."""
