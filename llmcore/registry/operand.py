"""One argument of a bound kernel: memory of a device, viewed as numpy, torch or a number, without copies.

Views are made when a kernel is bound, never in a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcore.device.host import as_torch
from llmcore.dims import Shape, Sym
from llmcore.errors import RegistryError


@dataclass(frozen=True)
class Operand:
    """One argument of a bound kernel.

    Attributes:
        array: the whole of it, at its largest size; a step uses the leading part that its dims say. A numpy array, or
            an accelerator's tensor.
        shape: the symbolic shape; only a leading dimension may be symbolic.
    """

    name: str
    array: Any
    shape: Shape

    @property
    def address(self) -> int:
        """Where it begins, in bytes, on the device that has it."""
        return int(self.array.ctypes.data if isinstance(self.array, np.ndarray) else self.array.data_ptr())

    @property
    def leading(self) -> str | None:
        """The step dimension that its first axis follows, or None where its size is fixed."""
        return self.shape[0].name if self.shape and isinstance(self.shape[0], Sym) else None

    def view(self, kind: str) -> Any:
        """The memory as ``numpy`` or ``torch`` arrays (read-only memory too: kernels don't write to weights).

        Raises:
            RegistryError: numpy does not see an accelerator's memory.
        """
        if isinstance(self.array, np.ndarray):
            return self.array if kind == "numpy" else as_torch(self.array)
        if kind != "torch":
            raise RegistryError(
                f"{self.name} lies on {self.array.device}, which {kind} cannot see",
                remedy='a kernel for accelerators takes view="torch"',
            )
        return self.array
