"""The CPU backend: native kernels in Numba, one file per file of :mod:`llmcore.ops`, float32 activations.

Every kernel takes its work in chunks, reads weights as they lie in the checkpoint, and sums in a fixed order, so a
row's result is the same to the bit whatever the batch, the chunking and the number of threads.
"""
