"""TensorBoard's log of a training, which may still be writing it: curves and pictures. Knows no models."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

Curve = list[tuple[int, float]]  # (update, value) of each point
MOST = 1000  # points of a curve; of longer ones a random choice, and the last


class Log:
    """What the events in a ``folder`` say, as of the last :meth:`read`; nothing while there is no such folder."""

    def __init__(self, folder: Path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # half a second

        self.folder = folder
        self.events = EventAccumulator(str(folder), size_guidance={"scalars": MOST, "images": 1})

    def read(self) -> None:
        """Reads what was written since. Several threads may."""
        if self.folder.is_dir():
            self.events.Reload()

    def curves(self) -> dict[str, Curve]:
        """By tag, as in "train/loss"."""
        return {tag: [(event.step, event.value) for event in self.events.Scalars(tag)]
                for tag in self.events.Tags()["scalars"]}  # fmt: skip

    def pictures(self) -> dict[str, np.ndarray]:
        """The last (H,W,3) uint8 of each tag."""
        data = {tag: self.events.Images(tag)[-1].encoded_image_string for tag in self.events.Tags()["images"]}
        return {tag: np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for tag, png in data.items()}

    def position(self) -> tuple[int, int]:
        """The last update of any curve, and of any picture; 0 if there is none. It moves when there is something new."""
        tags = self.events.Tags()
        curves = [self.events.Scalars(tag)[-1].step for tag in tags["scalars"]]
        return max(curves, default=0), max((self.events.Images(tag)[-1].step for tag in tags["images"]), default=0)
