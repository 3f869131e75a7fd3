"""Tokens as range-coded bytes, under a prior's integer frequencies.

A prior says how probable token k is by an integer weight[k] >= 0; the weights of all K tokens sum to TOTAL - K, and the
frequency of k is weight[k] + 1 out of TOTAL. constriction gets the weights as float32: its fixed-point model spreads
TOTAL - K over the tokens in proportion and then adds 1 to each, so here its scale is exactly 1. Every partial sum is an
integer below 2^24, which float32 holds exactly, so what it codes with are our integers and nothing else.
"""

from collections.abc import Callable, Sequence

import numpy as np
from constriction import stream

Categorical, RangeEncoder, RangeDecoder = stream.model.Categorical, stream.queue.RangeEncoder, stream.queue.RangeDecoder
TOTAL = 2**24  # the frequencies of all tokens together: the precision of the range coder
OTHER_FLOATS = "coded in floats on another kind of machine"
Step = Callable[[np.ndarray], np.ndarray]  # (R,n) tokens since its last call, 0 and then 1 -> weights (R,K) of the next one


def intervals(weights: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Each token's share of [0, TOTAL): weights (N,K) float32 (integers >= 0, rows sum to TOTAL - K) and tokens (N) int64 in
    [0,K) -> (2,N) int64, the cumulative frequency of all smaller tokens, and the token's own."""
    N, K = weights.shape
    start = np.arange(N) * K
    flat = np.ascontiguousarray(weights).reshape(-1)  # (N,K) -> (N*K)
    cuts = np.stack([start, start + tokens], axis=1).reshape(-1)  # (N,2) -> (2N)
    cumulative = np.add.reduceat(flat, cuts)[::2].astype(np.int64)  # sums of [start, token), [token, next start), and so on
    cumulative[tokens == 0] = 0  # reduceat takes an empty range for one number
    return np.stack([cumulative + tokens, flat[start + tokens].astype(np.int64) + 1])


def equal_weights(R: int, n: int) -> np.ndarray:
    """(R,n) float32, as in :func:`intervals`, of n equally probable numbers; n is a power of two."""
    return np.full((R, n), TOTAL // n - 1, np.float32)


def intervals_by_steps(step: Step, tokens: np.ndarray) -> np.ndarray:
    """The intervals (2,R,N) of tokens (R,N) int64, position by position, as :meth:`BatchDecoder.decode` repeats them."""
    parts = [intervals(step(tokens[:, max(0, n - 1) : n]), tokens[:, n]) for n in range(tokens.shape[1])]
    return np.stack(parts, axis=-1)  # N x (2,R) -> (2,R,N)


def encode(cumulative: np.ndarray, frequency: np.ndarray) -> bytes:
    """The payload of a stream of tokens, given their :func:`intervals` (N), (N)."""
    append(encoder := RangeEncoder(), cumulative, frequency)
    return finish(encoder)


def append(encoder: RangeEncoder, cumulative: np.ndarray, frequency: np.ndarray) -> None:
    """Codes the next tokens of a stream, given their :func:`intervals` (N), (N). Each is coded as the middle one of three
    symbols, smaller, own and larger: the same bytes as among all K, from three numbers and not K."""
    larger = TOTAL - cumulative - frequency
    first, last = cumulative == 0, larger == 0
    parts = np.stack([cumulative, frequency, larger], axis=1)  # (N,3)
    if (first & (larger < 2) | last & (cumulative < 2)).any():  # one or two tokens in all, too few for three symbols
        for row in parts:
            if (row > 0).sum() > 1:
                encoder.encode(int(row[0] > 0), Categorical((row[row > 0] - 1).astype(np.float32), perfect=False))
    else:  # where nothing is smaller or larger, the other side is split
        one = np.ones_like(frequency)
        parts[first] = np.stack([frequency, larger - 1, one], axis=1)[first]
        parts[last] = np.stack([one, cumulative - 1, frequency], axis=1)[last]
        encoder.encode((1 - first + last).astype(np.int32), Categorical(perfect=False), (parts - 1).astype(np.float32))


def finish(encoder: RangeEncoder) -> bytes:
    """The shortest payload that a decoder which reads zeros after its end takes for the tokens coded, but for zero bytes
    that say how much has been coded: any number in the interval that the encoder arrived at decodes to them, and one whose
    last bytes are zero is taken."""
    words, (lower, width) = encoder.pos()  # finished 32-bit words, and the interval in units of the 64 bits after them
    n = 4 * words
    sealed = int.from_bytes(encoder.get_compressed().astype(">u4").tobytes().ljust(n + 8, b"\0"), "big")  # one such number
    lower = sealed - (sealed - lower) % 2**64
    for kept in range(9):
        unit = 256 ** (8 - kept)
        number = -(-lower // unit) * unit
        if number < lower + width:
            return number.to_bytes(n + 8, "big")[: n + kept]
    raise AssertionError("unreachable: the unit has come to 1")


def decoder_of(payload: bytes) -> RangeDecoder:
    """Reads zeros after the payload's end."""
    padded = payload + bytes(-len(payload) % 4 + 8)
    return RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))


class BatchDecoder:
    """Decodes S payloads, which messages call by ``names``, in lockstep, one or several tokens of each at a time. Unless
    the weights are ``exact``, messages say that they may differ on another kind of machine."""

    def __init__(self, payloads: Sequence[bytes], names: Sequence[str], exact: bool = True):
        self.decoders = list(map(decoder_of, payloads))
        self.names, self.or_else = names, () if exact else (OTHER_FLOATS,)
        # of each payload: its bytes, how many of them are finished words of the encoder, and the width of its interval
        self.streams = [[len(payload), 0, 2**64 - 1] for payload in payloads]

    def next(self, weights: np.ndarray) -> np.ndarray:
        """Weights (S*T,K) as in :func:`intervals`, T rows for the next T tokens of each stream -> the tokens (S*T) int64.
        ValueError, naming the payload, if one cannot hold what has been read from it."""
        R, K = weights.shape
        S, tokens = len(self.decoders), np.zeros(R, np.int64)
        for row, w in enumerate(weights if K > 1 else ()):
            s = row * S // R
            try:
                tokens[row] = token = self.decoders[s].decode(Categorical(w, perfect=False, lazy=True))
            except Exception:  # an AssertionError today: the bytes point outside of every token's interval
                raise damaged(self.names[s], "its tokens cannot be decoded", *self.or_else) from None
            self._narrow(s, int(w[token]) + 1)
        return tokens

    def _narrow(self, s: int, frequency: int) -> None:
        """Repeats what the encoder's interval became by a token of payload ``s``. ValueError if it cannot be so long: thus
        the time is bounded by the payload, whatever size a header claims."""
        stream = self.streams[s]
        width = (stream[2] >> 24) * frequency  # TOTAL is 2^24
        if width < 2**32:
            width <<= 32
            stream[1] += 4
            if stream[1] > stream[0]:
                raise damaged(self.names[s], "its tokens take more bytes than it has", *self.or_else)
        stream[2] = width

    def finish(self) -> None:
        """ValueError, naming it, if a payload continues after its tokens."""
        for name, (length, words, _) in zip(self.names, self.streams, strict=True):
            if length > words + 8:  # see the function finish
                raise damaged(name, f"it has {length - words - 8:,} bytes after its tokens", *self.or_else)

    def decode(self, step: Step, R: int, N: int) -> np.ndarray:
        """The next N tokens (R,N) int64 of R = S*T rows, position by position. ValueError as in :meth:`next`."""
        tokens = np.empty((R, N), np.int64)
        for n in range(N):
            tokens[:, n] = self.next(step(tokens[:, max(0, n - 1) : n]))
        return tokens


def damaged(name: str, how: str, *or_else: str) -> ValueError:
    """``or_else``: what it may be instead."""
    return ValueError(f"{', or '.join([f'{name} is damaged', *or_else])}: {how}.")
