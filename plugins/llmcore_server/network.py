"""Addresses, and how much of a request is looked at."""

from __future__ import annotations

import ipaddress

HEADER_BYTES = 64 << 10  # of all headers of a request


def is_loopback(host: str) -> bool:
    """Whether this machine alone can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
