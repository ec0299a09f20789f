"""Tools for GPU kernels: compiling them without a GPU, and tuning them on one."""
