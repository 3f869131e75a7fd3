"""The table of data sets by the name that ``--dataset`` gives them; one line adds a third party's."""

from homework.datasets.features import FeatureDataset
from homework.datasets.images import ImageDataset
from homework.datasets.mnist import MnistDataset, MnistImages
from homework.datasets.tokens import MultiscaleDataset, TokenDataset

DATASETS = {"images": ImageDataset, "tokens": TokenDataset, "multiscale": MultiscaleDataset, "features": FeatureDataset,
            "mnist": MnistDataset, "mnist_images": MnistImages}  # fmt: skip
