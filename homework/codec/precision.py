"""Matrix products with all bits of float32, whatever the caller has allowed."""

import contextlib
import threading
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products with all bits of float32, whatever the caller has allowed (TF32, bfloat16, autocast). What is allowed
    is one setting for all threads: the first to come in changes it, the last to go out changes it back."""
    autocast = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else None
    with _lock:
        _inside.append(_allowed() if not _inside else _inside[0])
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), autocast or contextlib.nullcontext():
            yield
    finally:
        with _lock:
            allowed = _inside.pop()
            if not _inside:
                _allow(*allowed)


_lock, _inside = threading.Lock(), []


def _allowed() -> tuple[str | None, list]:
    """The setting for all backends, None where each has been given its own; and these, which torch 2.9 and later have."""
    backends = (getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn))
    own = [(backend, backend.fp32_precision) for backend in backends if hasattr(backend, "fp32_precision")]
    try:
        return torch.get_float32_matmul_precision(), own
    except RuntimeError:  # torch's word for a mix of both
        return None, own


def _allow(common: str | None, own: list) -> None:
    if common is not None:
        torch.set_float32_matmul_precision(common)
    for backend, precision in own:
        backend.fp32_precision = "none"  # so that it has again what it had from a setting for several backends
        if backend.fp32_precision != precision:
            backend.fp32_precision = precision
