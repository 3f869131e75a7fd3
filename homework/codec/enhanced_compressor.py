"""Images to bytes and back, with a second grid for what the tokens leave of them."""

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from homework.codec import archive, dial, format, tiles
from homework.codec.compressor import Compressor
from homework.codec.enhancement import MAGNITUDES, STEPS, EnhancementLayer
from homework.codec.parallel import groups
from homework.codec.range_coder import RangeEncoder, damaged, decoder_of, finish
from homework.core.fingerprint import fingerprint
from homework.datasets.image_files import batches_of
from homework.datasets.images import as_float
from homework.priors.base import Prior
from homework.tokenizers.base import Tokenizer

MOST = 70  # the highest quality at which tokens are searched: what they cost beyond, the second grid does for less
TILES_AT_ONCE = 16  # that are quantized together: with many more, only memory grows


class NotOnIntegers(ValueError):
    """A prior cannot be coded on integers."""


class EnhancedCompressor(Compressor):
    """As :class:`homework.codec.compressor.Compressor`, but above a quality of 62 what the tokens leave of an image is coded
    as well, by an :class:`homework.codec.enhancement.EnhancementLayer`::

        x (H,W,3) -> tokens (h,w), as before -> decode_index -> what is left of x -> q (h,w,n), multiples of a step

    What the methods call a grid is (h,w,2+n): a token, the number of the step (0 for none), and its n numbers q. Above 62
    effort 0 needs no dial. ValueError if the layer is of another tokenizer, or the prior is not on integers, which the
    second grid's coder needs.
    """

    def __init__(self, tokenizer: Tokenizer, autoregressive: Prior, layer: EnhancementLayer,
                 device: str | torch.device | None = None, batch_size: int = 64, effort: int = 0,
                 quality: float = dial.QUALITY, target: dial.Target | None = None):  # fmt: skip
        if not layer.is_for(tokenizer):
            raise ValueError("The enhancement layer was made for another tokenizer; make one for this, by "
                             "python -m homework.enhancement.")  # fmt: skip
        layer.check()
        super().__init__(tokenizer, autoregressive, device, batch_size, effort, quality, target)
        if not self.entropy_model.exact:
            raise NotOnIntegers("An enhancement layer needs a prior on integers, an AutoregressiveModel; leave it out.")
        with torch.inference_mode(False):
            self.layer = copy.deepcopy(layer).cpu().float()
        self.pair = dataclasses.replace(self.pair, enhancement=fingerprint(self.layer))

    @property
    def models(self) -> format.ModelPair:
        return dataclasses.replace(self.pair, enhanced=self.target is not None or step_at(self.quality) > 0)

    def _set(self, effort: int, quality: float, target: dial.Target | None) -> None:
        dial.lmbda_at(quality)  # ValueError if it is none
        enhanced = target is not None or step_at(quality) > 0
        searched = effort or self.tokenizer.has_dial or not enhanced
        super()._set(effort, quality if searched else dial.QUALITY, target if searched else None)
        self.quality, self.target = quality, target

    def checked(self, grids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Grids (B,h,w,2+n), or (B,h,w) without a second grid. ValueError if they are none."""
        if grids.ndim == 3 or not len(grids):
            return self.extended(super().checked(grids if grids.ndim == 3 else grids[..., 0], size))
        if grids.ndim != 4 or grids.shape[-1] != 2 + self.layer.n:
            raise ValueError(f"Grids {grids.shape} are not (B,h,w,{2 + self.layer.n}).")
        tokens, grids = super().checked(grids[..., 0], size), grids.astype(np.int64)
        step, q = grids[..., 1], grids[..., 2:]
        alike = (step == step[:, :1, :1]).all() and step.min() >= 0 and step.max() <= STEPS
        if not alike or np.abs(q).max() >= MAGNITUDES or q[step == 0].any():
            raise ValueError(f"A second grid has one step from 0 to {STEPS}, and numbers below {MAGNITUDES}, 0 for step 0.")
        if step.any() and not self.models.enhanced:
            raise ValueError(f"At a quality of {self.quality:g} files have no second grid; use one of at least 62.5.")
        return np.concatenate([tokens[..., None], grids[..., 1:]], axis=-1, dtype=np.int32)

    def extended(self, tokens: np.ndarray) -> np.ndarray:
        """(B,h,w) tokens -> grids (B,h,w,2+n) without a second grid, int32: int64 would be 320 MB for 24 megapixels."""
        grids = np.zeros((*tokens.shape, 2 + self.layer.n), np.int32)
        grids[..., 0] = tokens
        return grids

    @property
    def chooses(self) -> bool:
        return bool(self.effort) or self.models.enhanced

    def image_file(self, size: tuple[int, int], payload: bytes, crc: int) -> bytes:
        """As :meth:`Compressor.image_file`; of an image without a second grid as of a compressor without a layer, 3 bytes
        less: with a target it is not known before which of them have one."""
        tokens, second = format.parts(payload) if self.models.enhanced else (payload, b"")
        return super().image_file(size, payload, crc) if second else format.image_file(self.pair, size, tokens, crc)

    def lmbda_at(self, quality: float) -> float:
        return dial.lmbda_at(min(quality, MOST))

    def nearest(self, quality: float) -> float:
        return quality if self.effort or self.tokenizer.has_dial or step_at(quality) else dial.QUALITY

    @torch.no_grad()
    def completed(self, x: Tensor, tokens: np.ndarray, quality: float) -> np.ndarray:
        """Tokens (h,w) of an image (H,W,3) and, above a quality of 62, the second grid: (h,w,2+n)."""
        grid = self.extended(tokens[None])[0]
        if step := step_at(quality):
            lmbda = dial.lmbda_at(quality)
            saved, q = 0.0, grid[..., 2:]
            for parts, residual in self.residuals(x, tokens):
                own = np.stack([tokens[part] for part in parts])  # (T,a,b)
                found = self.layer.quantize(self.layer.coefficients(residual), own, step, lmbda)
                left = residual - self.layer.residual(found, step)
                saved += float(residual.square().sum() - left.square().sum())
                saved -= 3 * lmbda * float(self.layer.bits(found, own, step).sum())
                for part, numbers in zip(parts, found, strict=True):
                    q[part] = numbers
            if saved > 0:  # what an image without detail saves does not pay for saying that there is none
                grid[..., 1] = step
            else:
                q[:] = 0
        return grid

    def residuals(self, x: Tensor, tokens: np.ndarray) -> Iterator[tuple[list[tiles.Slices], Tensor]]:
        """Of an image (H,W,3), what its tokens (h,w) leave, some tiles of one size at a time: rows and columns of the grid,
        and (T,a*P,b*P,3) float32 on the CPU, 0 beyond the image."""
        P, (h, w) = self.pair.patch, tokens.shape
        left = torch.zeros(h * P, w * P, 3)
        for _, (rows, columns), x_hat in super().decoded_blocks([tokens], [(x.shape[0], x.shape[1])]):
            own = as_float(x[rows, columns]).to(self.device) - x_hat
            left[rows.start : rows.start + own.shape[0], columns.start : columns.start + own.shape[1]] = own.cpu()
        for (a, b), corners in self.tiles((h, w)):
            for some in batches_of(corners, TILES_AT_ONCE):
                parts = [(slice(top, top + a), slice(column, column + b)) for top, column in some]
                yield parts, torch.stack([left[tiles.scaled(part, P)] for part in parts])

    def decoded_blocks(self, grids: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]],
                       ) -> Iterator[tuple[int, tiles.Slices, Tensor]]:  # fmt: skip
        P = self.pair.patch
        for i, (rows, columns), x in super().decoded_blocks([tokens_of(grid) for grid in grids], sizes):
            where = slice(rows.start // P, rows.stop // P), slice(columns.start // P, columns.stop // P)
            if step := step_of(grids[i]):
                more = self.layer.residual(grids[i][where][None, ..., 2:], step)[0]
                x = x + more[: x.shape[0], : x.shape[1]].to(x)
            yield i, (rows, columns), x

    def by_patch(self, bits: Tensor, grid: np.ndarray) -> Tensor:
        if step := step_of(grid):
            for (a, b), corners in self.tiles(grid.shape[:2]):
                for top, left in corners:
                    tile = grid[None, top : top + a, left : left + b]
                    found = self.layer.bits(tile[..., 2:], tile[..., 0], step)[0]
                    bits[top : top + a, left : left + b] += torch.from_numpy(found)
        return bits

    def encode(self, grids: np.ndarray) -> list[bytes]:
        """(B,h,w,2+n) integers -> B payloads."""
        coded = super().encode(grids[..., 0])
        if not self.models.enhanced:
            return coded
        second = [b""] * len(grids)
        for step, some in groups(range(len(grids)), grids[:, 0, 0, 1].tolist()):
            if step:
                for i, payload in zip(some, self._encode_second(grids[some], step), strict=True):
                    second[i] = bytes([step]) + payload + format.crc32(self._covered(grids[i]))
        return [format.with_enhancement(*both) for both in zip(coded, second, strict=True)]

    def _encode_second(self, grids: np.ndarray, step: int) -> list[bytes]:
        encoders = [RangeEncoder() for _ in grids]
        for tile, corners in self.tiles(grids.shape[1:3]):
            parts = tiles.cut(grids, tile, corners)  # (B,T,a,b,2+n)
            self.layer.encode(encoders, parts[..., 2:], parts[..., 0], step)
        return list(map(finish, encoders))

    def _covered(self, grid: np.ndarray) -> bytes:
        """What the checksum of a second grid is of: the layer, the tokens, the step and the numbers."""
        tokens, step, q = grid[..., 0].astype("<u4"), bytes([grid[0, 0, 1]]), grid[..., 2:].astype("<i1")
        return self.pair.enhancement + tokens.tobytes() + step + q.tobytes()

    def payload(self, reader: archive.Reader, i: int) -> tuple[bytes, bytes]:
        """The coded tokens of image ``i`` of a file, and its coded second grid, empty if it has none."""
        return (reader.payload(i), b"") if reader.preview else reader.parts(i)

    def decode(self, payloads: Sequence[tuple[bytes, bytes]], grid: tuple[int, int], names: Sequence[str],
               sharpened: bool = True) -> np.ndarray:  # fmt: skip
        """The grids (B,h,w,2+n) int32 of payloads in two parts. ValueError, by one of the names, if one is damaged."""
        grids = self.extended(super().decode([first for first, _ in payloads], grid, names, sharpened))
        second = [(i, data) for i, (_, data) in enumerate(payloads) if data]
        for step, some in groups(second, [data[0] for _, data in second]):
            where, coded = zip(*some, strict=True)
            for i, data in some:
                if not 1 <= step <= STEPS or len(data) < 5:
                    raise damaged(names[i], "its second grid is not as it was written")
            grids[list(where)] = self._decode_second(coded, grids[list(where)], step, [names[i] for i in where])
        return grids

    def _decode_second(self, coded: Sequence[bytes], grids: np.ndarray, step: int, names: Sequence[str]) -> np.ndarray:
        """Second grids of one step, with their step, payload and checksum, and grids (B,h,w,2+n) without them -> with them.
        ValueError, by one of the names, if one is damaged."""
        decoders = [decoder_of(data[1:-4]) for data in coded]
        grids[..., 1] = step
        for (a, b), corners in self.tiles(grids.shape[1:3]):
            tokens = np.stack([grids[:, top : top + a, left : left + b, 0] for top, left in corners], axis=1)  # (B,T,a,b)
            try:
                q = self.layer.decode(decoders, tokens, step)
            except AssertionError:  # bytes that point outside of every interval
                raise damaged(" or ".join(names), "its second grid cannot be decoded") from None
            for t, (top, left) in enumerate(corners):
                grids[:, top : top + a, left : left + b, 2:] = q[:, t]
        for data, grid, payload, name in zip(coded, grids, self._encode_second(grids, step), names, strict=True):
            if data[1:] != payload + format.crc32(self._covered(grid)):
                raise damaged(name, "its second grid is not as it was written")
        return grids


def step_at(quality: float) -> int:
    """The step of a quality, 0 for none: 1 from 62.5, 8 from 97.5."""
    return max(0, min(STEPS, math.floor((quality - 57.5) / 5)))


def tokens_of(grid: np.ndarray) -> np.ndarray:
    """(h,w) of a grid (h,w,2+n), or of one without a second grid."""
    return grid[..., 0] if grid.ndim == 3 else grid


def step_of(grid: np.ndarray) -> int:
    """That of a grid (h,w,2+n), or 0 of one without a second grid."""
    return int(grid[0, 0, 1]) if grid.ndim == 3 else 0
