"""Where graph and backends meet: kernels chosen for nodes, memory handed to kernels."""
