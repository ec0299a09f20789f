"""The bound scales with the result, and with nothing that is not finite."""

from __future__ import annotations

import numpy as np

from llmcore.ops import tolerances


def test_bound_is_relative_to_the_element_and_to_the_whole() -> None:
    want = np.array([3.0, -4.0, 0.0, 0.0])
    np.testing.assert_allclose(tolerances.allowed(want, 0.1), [0.55, 0.65, 0.25, 0.25])


def test_bound_scales_with_the_result() -> None:
    want = np.random.default_rng(0).standard_normal(100)
    np.testing.assert_allclose(tolerances.allowed(1e6 * want, 1e-5), 1e6 * tolerances.allowed(want, 1e-5))


def test_infinities_do_not_widen_the_bound() -> None:
    assert tolerances.allowed(np.array([-np.inf, 2.0]), 0.1).tolist() == [0.2, 0.4]
    assert tolerances.allowed(np.array([-np.inf]), 0.1).tolist() == [0.0]
    assert tolerances.allowed(np.empty((0, 4)), 0.1).shape == (0, 4)


def test_the_coarsest_type_decides() -> None:
    assert tolerances.relative("float32") < tolerances.relative("float32", "float16") < tolerances.relative("bfloat16")
