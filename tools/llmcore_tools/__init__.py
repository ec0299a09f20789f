"""Tools around a model: thin commands over library functions."""
