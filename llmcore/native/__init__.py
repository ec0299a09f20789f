"""Native programs: rows of (function, operand table) run by one compiled loop with a worker pool.

Every native kernel is ``void kernel(int64 operands, int64 thread, int64 threads)``: a Numba ``@cfunc`` or a function
of any shared library. ``operands`` is the address of an int64 table:

====================  =========================================================================================
``[0]``               address of the row's counters, eight int64 that are zero when the row begins: chunks of work
                      claimed so far, and seven for the kernel's own use, such as chunks done
``[1]``               address of scratch memory, ``SCRATCH_BYTES`` for every thread
then                  one address per tensor parameter, in the order of the op's signature; 0 for one that is absent
then                  one address per dim letter (``OpSpec.dims`` order), of the int64 that holds its value in this step
                      (0 for a dim that only absent parameters have)
then                  the attributes in signature order: integers and booleans as they are, floats as float64 bits
then                  for a kernel that asks for it, the address of a workspace that all threads share
====================  =========================================================================================

A kernel does its work only in claimed chunks (``atomically counter++`` until the chunks run out). Threads come late to
a row, or never, and one that comes when all chunks are taken returns without a trace; so work is never divided by
``threads``. Chunks may be counted by several counters, if every thread goes on until each of them, claimed from by
itself, has shown it that nothing is left. The counters of each row lie on a cache line of their own, 64 bytes apart.

A claim must be an atomic read-modify-write with acquire and release order at least (in C ``__ATOMIC_ACQ_REL`` or
``__ATOMIC_SEQ_CST``; in Numba :func:`llmcore.native.abi.claim` is). The pool lets a thread go on to the next row when
it has seen all chunks taken and no thread inside the kernel: with a relaxed counter it could see the last claim, but
not yet the flag of the thread that made it, and begin to read what that one still writes.
"""

COUNTERS = 8  # of a row
HEADER = 2  # operands before the first tensor
SCRATCH_BYTES = 1 << 20  # per thread
LOOPS = tuple(f"llmcore.native.loop:{name}" for name in ("prepare", "run", "serve", "stop"))  # what runs the rows
