"""What this package offers. Nothing heavy is imported here: targets are resolved when a kernel is bound."""

from llmcore.hookspecs import BackendInfo, KernelInfo, hookimpl


@hookimpl
def llmcore_backends():
    """One backend with two kernels; every other op comes from the next backend in the user's order."""
    return [
        BackendInfo(
            "example",
            "two kernels from outside: rms_norm in numpy, swiglu native",
            (
                KernelInfo("rms_norm", "llmcore_example_backend.rms_norm:rms_norm"),
                KernelInfo("swiglu", "llmcore_example_backend.swiglu:swiglu", abi="native"),
            ),
            requires=("numba",),
        )
    ]
