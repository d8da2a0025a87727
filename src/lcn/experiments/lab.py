"""Opens workspaces, on datasets and on generated logs, that share a store and processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lcn.data.dataset import open_dataset
from lcn.data.sources.synthetic_config import SyntheticConfig
from lcn.experiments.planted import planted_dataset
from lcn.experiments.runner import Workers, Workspace
from lcn.experiments.settings import Options
from lcn.experiments.store import open_store
from lcn.experiments.subset import quick_view
from lcn.experiments.teller import Say


@dataclass(frozen=True, slots=True)
class Lab:
    """The results store, the options and the processes of one call."""

    root: Path
    """The results store."""
    options: Options
    workers: Workers
    say: Say | None = None
    """Told of each finished run; None shows a bar on stderr."""

    def open(self, dataset: Path) -> Workspace:
        """The workspace of a dataset, or of its quick view.

        Raises:
            DataError: no finished dataset there.
        """
        return self._workspace(quick_view(dataset, self.root) if self.options.quick else dataset)

    def generate(self, config: SyntheticConfig) -> Workspace:
        """The workspace of a generated log, which is made once."""
        return self._workspace(planted_dataset(config, self.root))

    def _workspace(self, dataset: Path) -> Workspace:
        manifest = open_dataset(dataset).manifest
        return Workspace(
            dataset=str(dataset),
            name=manifest.name,
            store=open_store(self.root, manifest),
            options=self.options,
            settings=self.options.settings_for(manifest.name),
            sizes=self.options.sizes_for(manifest.name),
            workers=self.workers,
            say=self.say,
        )
