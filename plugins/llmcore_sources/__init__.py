"""Model sources: a reference (path, ``pypi:`` wheel, hub id) becomes a file or directory on this machine."""
