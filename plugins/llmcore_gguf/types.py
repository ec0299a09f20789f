"""GGUF's numbered types: of metadata values and of tensors (``gguf_type`` and ``ggml_type``)."""

from __future__ import annotations

from collections.abc import Mapping

from llmcore.weights.formats import FORMATS, TensorFormat, storage

BOOL, STRING, ARRAY = 7, 8, 9

SCALARS: Mapping[int, tuple[str, int]] = {  # number → struct code (also numpy's, after "<"), bytes
    0: ("B", 1),
    1: ("b", 1),
    2: ("H", 2),
    3: ("h", 2),
    4: ("I", 4),
    5: ("i", 4),
    6: ("f", 4),
    BOOL: ("?", 1),
    10: ("Q", 8),
    11: ("q", 8),
    12: ("d", 8),
}

TENSOR_TYPES: Mapping[int, TensorFormat] = {
    0: FORMATS["F32"],
    1: FORMATS["F16"],
    2: FORMATS["Q4_0"],
    3: FORMATS["Q4_1"],
    6: FORMATS["Q5_0"],
    7: FORMATS["Q5_1"],
    8: FORMATS["Q8_0"],
    9: storage("Q8_1", 32, 40),
    10: FORMATS["Q2_K"],
    11: FORMATS["Q3_K"],
    12: FORMATS["Q4_K"],
    13: FORMATS["Q5_K"],
    14: FORMATS["Q6_K"],
    15: storage("Q8_K", 256, 292),
    16: storage("IQ2_XXS", 256, 66),
    17: storage("IQ2_XS", 256, 74),
    18: storage("IQ3_XXS", 256, 98),
    19: storage("IQ1_S", 256, 50),
    20: storage("IQ4_NL", 32, 18),
    21: storage("IQ3_S", 256, 110),
    22: storage("IQ2_S", 256, 82),
    23: storage("IQ4_XS", 256, 136),
    24: FORMATS["I8"],
    25: FORMATS["I16"],
    26: FORMATS["I32"],
    27: FORMATS["I64"],
    28: FORMATS["F64"],
    29: storage("IQ1_M", 256, 56),
    30: FORMATS["BF16"],
    34: storage("TQ1_0", 256, 54),
    35: storage("TQ2_0", 256, 66),
    39: storage("MXFP4", 32, 17),
    40: storage("NVFP4", 64, 36),
    41: storage("Q1_0", 128, 18),
}
