"""The table of data sets by the name that ``--dataset`` gives them; one line adds a third party's."""

from homework.datasets.base import Dataset
from homework.datasets.features import FeatureDataset
from homework.datasets.images import ImageDataset
from homework.datasets.mnist import MnistDataset, MnistImages
from homework.datasets.shard_dataset import ShardDataset
from homework.datasets.tokenized_images import TokenizedImages
from homework.datasets.tokens import MultiscaleDataset, TokenDataset

DATASETS: dict[str, type[Dataset]] = {
    "images": ImageDataset, "tokens": TokenDataset, "multiscale": MultiscaleDataset, "features": FeatureDataset,
    "mnist": MnistDataset, "mnist_images": MnistImages, "tokenized_images": TokenizedImages, "shards": ShardDataset,
}  # fmt: skip
