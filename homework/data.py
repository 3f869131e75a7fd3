"""Puts data in place: ``python -m homework.data download|mnist|import|shard``. See ``--help``."""

from homework.core import cli
from homework.datasets.download import download, import_, mnist
from homework.datasets.images import ImageDataset, to_float, to_uint8  # noqa: F401  for notebooks
from homework.datasets.sharding import shard

if __name__ == "__main__":
    cli.main("python -m homework.data", {"download": download, "mnist": mnist, "import": import_, "shard": shard})
