"""The Triton backend: GPU kernels, which Triton's interpreter runs on any machine."""
