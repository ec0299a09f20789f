"""Where a program's memory lies, and how the host reaches it: this machine's memory, or an accelerator's."""

from llmcore.device.base import Device, Mirror, Place, Reader
from llmcore.device.host import HOST, Host

__all__ = ["HOST", "Device", "Host", "Mirror", "Place", "Reader"]
