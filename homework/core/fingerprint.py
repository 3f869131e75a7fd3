"""Fingerprints: how files know the models that they were made with.

A fingerprint covers what is computed: the name of the architecture, the options that change the computation and are not at
their defaults, and the tensors in the order of their names in the state dict. The names themselves do not enter, nor does
the class's where it has an ``architecture``, so that a class can be moved, and gain an option with a default, without
orphaning a file. The default of an option that exists must therefore never change.

A tokenizer whose encoder alone was trained further has the fingerprints of the one that it came from, which its checkpoint
keeps under :data:`CODES_OF`: its codes mean the same, so that either reads the other's files. So do those whose tokens are a
part of the one's. One whose decoder alone was trained further is another, for it makes other images of old files; but its
tokens are what they were, so that priors and token files, which know it by its :func:`identity`, go on with it: its
checkpoint keeps that under :data:`TOKENS_OF`.

Files of format 1 know their models by a hash of the class's name, the tensors with their names, and all options:
:func:`legacy_digest`.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from homework.core.model import Model

CODES_OF = "codes_of"  # in meta: {"fingerprint", "legacy" (64 hexadecimal digits each), "identity"} of the first tokenizer
TOKENS_OF = "tokens_of"  # in meta: the :func:`identity` of the tokenizer that made the tokens from which the decoder learned
IDENTITY = "[0-9a-f]{16}( [0-9a-f]{16})?"


def digest(model: Model, tensors: Mapping[str, Tensor], dtype: torch.dtype, prefix: str = "") -> bytes:
    """SHA-256 (32 bytes) of the architecture of ``model`` after ``prefix``, its options that are not at their defaults, and
    ``tensors`` rounded to ``dtype``."""
    parameters = inspect.signature(type(model).__init__).parameters
    options = {
        name: value
        for name, value in model.config.items()
        if name not in model.training_options and (name not in parameters or value != parameters[name].default)
    }
    sha = hashlib.sha256(json.dumps([prefix + architecture_of(model), options], sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        sha.update(repr(tuple(tensor.shape)).encode() + _bytes(tensor, dtype))
    return sha.digest()


def architecture_of(model: Model) -> str:
    """The name of what its class computes: its own, for a subclass computes something else."""
    return vars(type(model)).get("architecture", type(model).__name__)


def codes_of(model: Model) -> dict[str, str]:
    """What a tokenizer with the same codes, that comes from ``model``, keeps under :data:`CODES_OF`. ValueError if what the
    model has there itself is none."""
    kept = model.meta.get(CODES_OF)
    if kept is None:
        digests = {"fingerprint": fingerprint(model).hex(), "legacy": legacy_fingerprint(model).hex()}
        return digests | {"identity": identity(model)}
    forms = {"fingerprint": "[0-9a-f]{64}", "legacy": "[0-9a-f]{64}", "identity": IDENTITY}
    if not isinstance(kept, dict) or not all(re.fullmatch(form, str(kept.get(key))) for key, form in forms.items()):
        raise ValueError(f"The checkpoint's {CODES_OF} is damaged; train the tokenizer again.")
    return kept


def codes_of_part(part: Model, whole: Model, *how: object) -> dict[str, str]:
    """What a tokenizer keeps under :data:`CODES_OF` whose tokens are some of those of ``whole``, chosen as ``how`` says: the
    same for every encoder that makes these codes."""
    name = architecture_of(part), how
    found = {key: hashlib.sha256(repr((*name, known.split()[0])).encode()).hexdigest()
             for key, known in codes_of(whole).items()}  # fmt: skip
    return found | {"identity": f"{found['identity'][:16]} {of_all_weights(part)}"}  # the latter is what early files have


def fingerprint(model: Model) -> bytes:
    """32 bytes by which compressed files know a model: its :func:`digest` with the weights as float32."""
    if CODES_OF in model.meta:
        return bytes.fromhex(codes_of(model)["fingerprint"])
    return digest(model, model.state_dict(), torch.float32)


def identity(model: Model) -> str:
    """By which token files, feature maps and priors know a model: the first 16 hexadecimal digits of its :func:`digest` and,
    after a space, of its :func:`legacy_digest`. Both round the weights to float16, so that a checkpoint and its float16 copy
    have the same."""
    if CODES_OF in model.meta:
        return codes_of(model)["identity"]
    if TOKENS_OF in model.meta:
        known = str(model.meta[TOKENS_OF])
        if not re.fullmatch(IDENTITY, known):
            raise ValueError(f"The checkpoint's {TOKENS_OF} is damaged; train the tokenizer again.")
        return known
    legacy = legacy_digest(type(model).__name__, {}, model.state_dict(), torch.float16)
    return f"{of_all_weights(model)} {legacy.hex()[:16]}"


def of_all_weights(model: Model) -> str:
    """16 hexadecimal digits by which work that is resumed knows a model: of two tokenizers with the same codes, but other
    encoders, they differ."""
    return digest(model, model.state_dict(), torch.float16).hex()[:16]


def is_same(one: str, other: str) -> bool:
    """Whether two files that know their model by these :func:`identity` strings mean one model: they share a half. Early
    files have the second half alone."""
    return not set(one.split()).isdisjoint(other.split())


def is_of(known: str, model: Model) -> bool:
    """Whether a file that knows its model by the :func:`identity` ``known`` means ``model``."""
    return is_same(known, identity(model))


def legacy_digest(name: str, config: dict, tensors: dict[str, Tensor], dtype: torch.dtype) -> bytes:
    """SHA-256 of a class's name, its options, and its tensors by name, these rounded to ``dtype``: 32 bytes."""
    sha = hashlib.sha256(repr((name, sorted(config.items()))).encode())
    for key, tensor in sorted(tensors.items()):
        sha.update(repr((key, tuple(tensor.shape))).encode() + _bytes(tensor, dtype))
    return sha.digest()


def legacy_options(model: Model) -> dict:
    """The options of ``model`` that existed in format 1: add the name of each option that comes later."""
    later = {"pca", "coarser", "context_dim", "attention", "dial", "learns"}
    return {name: value for name, value in model.config.items() if name not in later}


def legacy_fingerprint(model: Model) -> bytes:
    """As :func:`fingerprint`, for format 1."""
    if CODES_OF in model.meta:
        return bytes.fromhex(codes_of(model)["legacy"])
    return legacy_digest(type(model).__name__, legacy_options(model), model.state_dict(), torch.float32)


def _bytes(tensor: Tensor, dtype: torch.dtype) -> bytes:
    return tensor.detach().cpu().to(dtype).contiguous().numpy().tobytes()
