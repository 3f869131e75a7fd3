"""Matrix products with all bits of float32."""

import contextlib
import threading
from collections.abc import Iterator

import torch

_lock, _before = threading.Lock(), []  # the settings from before the first of the blocks that are open, for each of them


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inference mode, and matrix products with all bits of float32, whatever the caller has allowed (TF32, bfloat16,
    autocast). What is allowed is one setting for all threads: the first block changes it, the last one changes it back."""
    autocast = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else None
    with _lock:
        _before.append(_before[0] if _before else _allowed())
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), autocast or contextlib.nullcontext():
            yield
    finally:
        with _lock:
            common, own = _before.pop()
            if not _before and common is not None:
                torch.set_float32_matmul_precision(common)
            for backend, precision in [] if _before else own:
                backend.fp32_precision = "none"  # so that it has again what it had from a setting for several backends
                if backend.fp32_precision != precision:
                    backend.fp32_precision = precision


def _allowed() -> tuple[str | None, list]:
    """The setting for all backends, None where each has been given its own; and these, which torch 2.9 and later have."""
    backends = (getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn))
    own = [(backend, backend.fp32_precision) for backend in backends if hasattr(backend, "fp32_precision")]
    try:
        return torch.get_float32_matmul_precision(), own
    except RuntimeError:  # torch reports a mix of both so
        return None, own
