"""Hydra finds the config groups of installed packages through this plugin, in llmcore's own commands alone."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from llmcore.config.search_path import OWN, offered


class LlmcoreSearchPath(SearchPathPlugin):  # type: ignore[misc]
    """Appends ``pkg://`` paths for what is registered under ``llmcore.conf``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Leaves other applications that use Hydra in this environment as they are."""
        if any(element.path == f"pkg://{OWN}" for element in search_path.get_path()):
            for package in offered():
                search_path.append(provider=package.distribution, path=f"pkg://{package.package}")
