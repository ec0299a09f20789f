"""The conformance kit: runs every kernel of a backend on every case of its op, and says what is wrong.

From the command line, in any folder: ``pytest --pyargs llmcore.testing --backend NAME [--op NAME]``; as a library,
:mod:`llmcore.testing.conformance`. Random calls between pages that nobody may touch are :mod:`llmcore.testing.fuzz`.
"""
