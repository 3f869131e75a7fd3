"""From logits to tokens: the frequencies are the probabilities, and the settings keep what they promise."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import GRID, K, batch_for, build
from hypothesis import given
from hypothesis import strategies as st

from homework.priors.sampling import check, generate, restrict, sample
from homework.priors.steps import Steps
from homework.priors.uniform import Uniform

logit_lists = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square(tokens: torch.Tensor, p: torch.Tensor) -> float:
    """Of the frequencies of ``tokens`` against the probabilities p (K)."""
    expected = p.double() * tokens.numel()
    counts = torch.bincount(tokens.flatten(), minlength=len(p))
    assert (counts[p == 0] == 0).all(), "a token of probability 0 was drawn"
    return float(((counts - expected) ** 2 / expected)[p > 0].sum())


# --- drawing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.8}, {"top_k": 5, "top_p": 0.9}])
def test_frequencies_are_the_probabilities(temperature, options):
    logits = torch.tensor([1.0, 0.3, -0.5, 2.0, -1.0, 0.0, -torch.inf, 1.5])
    p = restrict(logits / temperature, **options).softmax(dim=-1)
    tokens = sample(logits.expand(20_000, -1), temperature, generator=seeded(0), **options)
    assert tokens.dtype == torch.int64 and tokens.shape == (20_000,)
    assert chi_square(tokens, p) < 24.3  # 7 degrees of freedom at most: 1 in 1000


def test_many_small_probabilities_are_drawn_evenly():
    """A thousand tokens, the last as often as the first: sums of many small numbers lose nothing."""
    tokens = sample(torch.zeros(20_000, 1000), generator=seeded(1))
    assert chi_square(tokens, torch.full((1000,), 1e-3)) < 1143  # 999 degrees of freedom, 1 in 1000


@given(logit_lists, st.integers(0, 2**32))
def test_temperature_zero_takes_the_first_of_the_most_probable(values, seed):
    logits = torch.tensor(values)
    token = sample(logits, temperature=0, generator=seeded(seed))
    assert token == values.index(max(logits.tolist())) if max(values) in values else True
    assert logits[token] == logits.max()


@given(logit_lists, st.sampled_from([1e-6, 1e-20, 1e-38, 1e-45, 1e-300]))
def test_temperature_near_zero_takes_the_most_probable(values, temperature):
    logits = torch.tensor(values)
    second = logits.sort(descending=True).values[1:2]
    token = sample(logits, temperature=temperature, generator=seeded(0))
    if not len(second) or logits.max() - second > 1e-3:
        assert token == logits.argmax()


@given(
    st.lists(st.one_of(st.floats(-200, 20, width=32), st.just(-math.inf)), min_size=1, max_size=12),
    st.floats(0.01, 10),
    st.one_of(st.none(), st.integers(1, 15)),
    st.one_of(st.none(), st.floats(1e-6, 1)),
    st.integers(0, 2**32),
)
def test_no_token_of_probability_zero_is_drawn(values, temperature, top_k, top_p, seed):
    logits = torch.tensor([*values, 0.0])
    logits -= logits.max()  # as sample() does: it may make equals of tokens that differ by less than a rounding
    p = restrict(logits / temperature, top_k, top_p).softmax(dim=-1)
    tokens = sample(logits.expand(50, -1), temperature, top_k, top_p, seeded(seed))
    assert (p[tokens] > 0).all()


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53, 0.5])
def test_the_ends_of_the_unit_interval_draw_tokens_that_exist(u, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.full(size, u, dtype=torch.float64))
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.1, -torch.inf])
    assert sample(logits.expand(3, -1)).tolist() == [{0.0: 1, 0.5: 3}.get(u, 3)] * 3


@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 3, 4, 7)])
def test_every_leading_dimension_is_kept(shape):
    logits = torch.randn(shape, generator=seeded(0))
    for options in ({}, {"temperature": 0}, {"top_k": 2, "top_p": 0.5}):
        tokens = sample(logits, generator=seeded(0), **options)
        assert tokens.shape == shape[:-1] and 0 <= tokens.min() and tokens.max() < 7


def test_half_precision_logits_are_drawn_from_in_full():
    logits = torch.randn(7, generator=seeded(0)).bfloat16()
    tokens = sample(logits.expand(20_000, -1), generator=seeded(0))
    assert chi_square(tokens, logits.float().softmax(dim=-1)) < 22.5  # 6 degrees of freedom, 1 in 1000


def test_the_generator_that_is_passed_in_decides_alone():
    logits = torch.randn(100, 50, generator=seeded(0))
    torch.manual_seed(1)
    a, state = sample(logits, generator=seeded(5)), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(a, sample(logits, generator=seeded(5)))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())  # the global one was not touched
    assert not torch.equal(a, sample(logits, generator=seeded(6)))
    g = seeded(5)
    assert torch.equal(a, sample(logits, generator=g)) and not torch.equal(a, sample(logits, generator=g))


# --- restricting ----------------------------------------------------------------------------------------------------------


def test_top_k_by_hand():
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.0, 0.0, 0.0, 5.0]])
    kept = restrict(logits, top_k=2).isfinite()
    assert kept.tolist() == [[False, True, True, False], [True, True, True, True]]  # ties with the last one stay
    assert torch.equal(restrict(logits, top_k=4), logits) and torch.equal(restrict(logits, top_k=9), logits)


NUCLEI = [(0.3, [1]), (0.5, [1]), (0.51, [1, 3]), (0.8, [1, 3]), (0.82, [0, 1, 3]), (1, [0, 1, 2, 3])]


@pytest.mark.parametrize("top_p, kept", NUCLEI)
def test_top_p_by_hand(top_p, kept):
    logits = torch.tensor([0.125, 0.5, 0.0625, 0.3125]).log() + 3.0
    assert restrict(logits, top_p=top_p).isfinite().nonzero().flatten().tolist() == kept


@given(logit_lists, st.integers(1, 14))
def test_top_k_keeps_the_largest(values, k):
    logits = torch.tensor(values)
    out = restrict(logits, top_k=k)
    kept = out.isfinite()
    assert kept.sum() >= min(k, len(values)) and torch.equal(out[kept], logits[kept])
    assert kept[logits.argmax()] and (logits[~kept].max() if (~kept).any() else -math.inf) < logits[kept].min()
    assert (logits > logits[kept].min()).sum() < k  # no more than ties beyond k


@given(logit_lists, st.floats(1e-6, 1))
def test_top_p_keeps_the_smallest_nucleus(values, top_p):
    logits = torch.tensor(values)
    out = restrict(logits, top_p=top_p)
    kept, p = out.isfinite(), logits.double().softmax(dim=-1)
    assert kept.any() and torch.equal(out[kept], logits[kept])
    assert p[kept].max() == p.max()
    assert (~kept).all() or not (~kept).any() or p[~kept].max() <= p[kept].min() * (1 + 1e-6)  # the most probable ones
    assert p[kept].sum() >= top_p - 1e-5  # enough of them
    assert p[kept].sum() - p[kept].min() < top_p + 1e-5  # and not one too many


@given(logit_lists, st.integers(1, 14), st.floats(1e-6, 1))
def test_restrictions_do_not_touch_their_input(values, k, top_p):
    logits = torch.tensor(values)
    before = logits.clone()
    restrict(logits, k, top_p)
    sample(logits, 0.7, k, top_p, seeded(0))
    assert torch.equal(logits, before)


# --- settings -------------------------------------------------------------------------------------------------------------

BAD = [("temperature", v) for v in (-1, -1e-9, math.nan, math.inf, "hot", None, True)]
BAD += [("top_k", v) for v in (0, -3, 2.5, math.nan, math.inf, "few", True)]
BAD += [(name, v) for name in ("num_beam", "beam_width", "beams") for v in (0, -2, 1.5, math.nan, "two", None, True)]
BAD += [("top_p", v) for v in (0, -0.5, 1.01, math.nan, math.inf, "most", False)]


@pytest.mark.parametrize("name, value", BAD)
def test_bad_settings_are_named(name, value):
    with pytest.raises(ValueError, match=name) as error:
        check(**{name: value})
    assert str(value) in str(error.value)


GOOD = [
    {"num_beam": 3, "beam_width": 40, "top_k": 2},
    {"beams": 9, "beam_width": 2},
    {},
    {"temperature": 0},
    {"temperature": 0.1, "top_k": 1},
    {"top_p": 1},
    {"top_p": 1e-9},
    {"temperature": np.float64(0.9), "top_p": np.float32(0.5), "top_k": np.int64(3)},
]


@pytest.mark.parametrize("options", GOOD)
def test_good_settings_pass(options):
    check(**options)


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"num_beam": 2}, {"beams": 2}])
def test_logits_that_are_not_numbers_are_refused(options):
    steps = lambda tokens: torch.full((len(tokens), 40), torch.nan)  # noqa: E731
    steps.select = lambda rows: None
    with pytest.raises(ValueError, match="not numbers"):
        generate(steps, 2, 2, 3, **options)


# --- whole grids ----------------------------------------------------------------------------------------------------------


class Counting(Steps):
    """Their most probable token is the number of the position (mod K); ``seen`` gets what they were fed."""

    def __init__(self, seen: list, K: int = 40):
        self.seen, self.K = seen, K

    def advance(self, tokens):
        self.seen.append(tokens)
        n = sum(t.shape[1] for t in self.seen)
        return torch.nn.functional.one_hot(torch.full((len(tokens),), n % self.K), self.K) * 50.0


def test_grids_are_filled_in_raster_order():
    seen = []
    grids = generate(Counting(seen), 2, 3, 4, temperature=0)
    assert grids.dtype == torch.int64 and torch.equal(grids, torch.arange(12).view(3, 4).expand(2, 3, 4))
    assert [tuple(t.shape) for t in seen] == [(2, 0)] + [(2, 1)] * 11  # nothing first, and never the last token


def test_a_prefix_is_kept_and_fed_at_once():
    seen, prefix = [], torch.randint(40, (2, 2, 4), generator=seeded(0))
    grids = generate(Counting(seen), 2, 3, 4, temperature=0, prefix=prefix)
    assert torch.equal(grids[:, :2], prefix) and torch.equal(grids[:, 2], torch.arange(8, 12).expand(2, 4))
    assert torch.equal(seen[0], prefix.flatten(1)) and len(seen) == 4
    assert torch.equal(generate(Counting([]), 2, 2, 4, prefix=prefix), prefix)  # all of it is known already
    assert generate(Counting([]), 2, 2, 4, prefix=prefix[:, :0]).shape == (2, 2, 4)


@pytest.mark.parametrize("shape", [(1, 2, 4), (2, 4, 4), (2, 2, 3), (2, 2, 5), (2, 1, 8), (2, 8), (2,)])
def test_a_prefix_that_does_not_fit_is_named(shape):
    with pytest.raises(ValueError, match="prefix"):
        generate(Counting([]), 2, 3, 4, prefix=torch.zeros(shape, dtype=torch.int64))


def test_bad_settings_stop_before_the_first_draw():
    seen = []
    with pytest.raises(ValueError, match="top_p"):
        generate(Counting(seen), 1, 2, 2, top_p=1.5)
    assert not seen


# --- best of several continuations, and beam search -----------------------------------------------------------------------


class Table(Steps):
    """A prior over 2x3 grids of 4 tokens, whose logits at n are sums over all tokens before; and its steps."""

    def __init__(self):
        # by position, earlier position, and its token, of which 4 is before the first
        self.weight = 2 * torch.randn(6, 7, 5, 4, generator=seeded(3), dtype=torch.float64)
        self.tokens = None

    def logits(self, images: list[int], tokens: torch.Tensor) -> torch.Tensor:
        """Of the position after (B,n) tokens, naively; of which images of the batch they are is for those that have any."""
        before = torch.nn.functional.pad(tokens, (1, 0), value=4)
        return sum(self.weight[tokens.shape[1], i, before[:, i]] for i in range(before.shape[1]))

    def steps(self, B):
        self.tokens = torch.zeros(B, 0, dtype=torch.int64)
        return self

    def __call__(self, new):
        self.tokens = torch.cat([self.tokens, new], dim=1)
        return self.logits(None, self.tokens)

    def select(self, rows):
        self.tokens = self.tokens[rows]


class Prior:
    """A tiny transformer, or a stage of a cascade with a coarse grid for each image; 2x3 grids of 4 tokens, float64."""

    def __init__(self, name: str, **options):
        self.model = build(name, n_tokens=4, height=2, width=3, **options).double().eval()
        with torch.no_grad():
            for p in self.model.parameters():
                p.add_(0.5 * torch.randn(p.shape, generator=seeded(1), dtype=p.dtype))
        self.coarse = batch_for(self.model, 3)[0] if name == "CascadeStage" else None

    @torch.inference_mode()
    def logits(self, images, tokens):
        grid = torch.nn.functional.pad(tokens, (0, 6 - tokens.shape[1])).view(-1, 2, 3)  # what follows makes no difference
        batch = grid if self.coarse is None else (self.coarse[images], grid)
        return self.model(batch)[0].flatten(1, 2)[:, tokens.shape[1]]

    def steps(self, B):
        return self.model.steps(*((B,) if self.coarse is None else (self.coarse[:B],)), 2, 3)


PRIORS = {
    "table": Table,
    "transformer": lambda: Prior("AutoregressiveModel", window=4),
    "stage": lambda: Prior("CascadeStage", use_sliding_window=True, sliding_window=3),
    "decoder": lambda: Prior("CascadeStage", num_enc_layers=0),
}
every_prior = pytest.mark.parametrize("prior", PRIORS)


def nats(prior, image: int, rows: list[list[int]]) -> list[float]:
    """-log p of grids of one image, which may be partial, naively."""
    tokens, total = torch.tensor(rows), 0.0
    for n in range(tokens.shape[1]):
        log_p = prior.logits([image] * len(rows), tokens[:, :n]).log_softmax(dim=-1)
        total = total - log_p.gather(1, tokens[:, n : n + 1])[:, 0]
    return total.tolist()


def naive_best_of(prior, known: list[list[int]], num_beam: int, beam_width: int, **options) -> list[list[int]]:
    """All logits again for each token; continuations as lists, and a loop over the images to choose."""
    best = [list(row) for row in known]
    while len(best[0]) < 6:
        start = len(best[0])
        rows = [list(row) for row in best for _ in range(num_beam)]
        images = [b for b in range(len(best)) for _ in range(num_beam)]
        for _ in range(min(beam_width, 6 - start)):
            tokens = torch.tensor(rows, dtype=torch.int64).view(len(rows), -1)
            for row, token in zip(rows, sample(prior.logits(images, tokens), **options).tolist(), strict=True):
                row.append(token)
        for b in range(len(best)):
            own = rows[b * num_beam : (b + 1) * num_beam]
            scores = nats(prior, b, own)
            best[b] = own[scores.index(min(scores))]
    return best


def naive_beam_search(prior, image: int, known: list[int], beams: int) -> list[int]:
    """Of one image: every partial grid with every token, sorted."""
    kept = [(0.0, list(known))]
    while len(kept[0][1]) < 6:
        rows = torch.tensor([tokens for _, tokens in kept], dtype=torch.int64).view(len(kept), -1)
        p = prior.logits([image] * len(kept), rows).log_softmax(dim=-1).tolist()
        grown = [(total - p[i][t], [*tokens, t]) for i, (total, tokens) in enumerate(kept) for t in range(4)]
        kept = sorted(grown)[:beams]
    return kept[0][1]


KNOWN = torch.tensor([[[0, 3, 1]], [[2, 2, 0]], [[1, 0, 0]]])


@every_prior
@pytest.mark.parametrize("prefix", [None, KNOWN])
@pytest.mark.parametrize(
    "num_beam, beam_width, options", [(2, 1, {}), (3, 4, {"temperature": 1.5, "top_k": 3}), (2, 50, {})]
)
def test_best_of_is_its_naive_form(prior, prefix, num_beam, beam_width, options):
    prior, known = PRIORS[prior](), [[]] * 3 if prefix is None else prefix.flatten(1).tolist()
    options = options | {"num_beam": num_beam, "beam_width": beam_width}
    with torch.inference_mode():
        fast = generate(prior.steps(3), 3, 2, 3, generator=seeded(5), prefix=prefix, **options)
    assert fast.dtype == torch.int64 and fast.shape == (3, 2, 3)
    assert fast.flatten(1).tolist() == naive_best_of(prior, known, generator=seeded(5), **options)


@every_prior
@pytest.mark.parametrize("prefix", [None, KNOWN])
@pytest.mark.parametrize("beams", [2, 7, 20])
def test_beam_search_is_its_naive_form(prior, prefix, beams):
    prior, known = PRIORS[prior](), [[]] * 3 if prefix is None else prefix.flatten(1).tolist()
    with torch.inference_mode():
        fast = generate(prior.steps(3), 3, 2, 3, prefix=prefix, beams=beams)
    assert fast.flatten(1).tolist() == [naive_beam_search(prior, b, known[b], beams) for b in range(3)]


@every_prior
def test_beam_search_with_all_beams_finds_the_most_probable_grid(prior):
    """All 64 second rows of a grid whose first one is known."""
    prior = PRIORS[prior]()
    with torch.inference_mode():
        found = generate(prior.steps(3), 3, 2, 3, prefix=KNOWN, beams=4**3).flatten(1).tolist()
    for b, row in enumerate(KNOWN.flatten(1).tolist()):
        everything = [[*row, *rest] for rest in itertools.product(range(4), repeat=3)]
        scores = nats(prior, b, everything)
        assert found[b] == everything[scores.index(min(scores))]


def test_one_beam_draws_as_before_and_a_seed_repeats_many():
    seeds_and_beams = [(1, 4), (1, 4), (2, 4), (1, 1)]
    draws = [generate(Table().steps(3), 3, 2, 3, generator=seeded(s), num_beam=n) for s, n in seeds_and_beams]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    plain = generate(Table().steps(3), 3, 2, 3, generator=seeded(1), beam_width=5)
    assert torch.equal(plain, draws[3])


@pytest.mark.parametrize("options", [{"num_beam": 3}, {"beams": 2}])
def test_a_grid_that_is_known_already_stays(options):
    prefix = torch.arange(6).view(1, 2, 3) % 4
    assert torch.equal(generate(Table().steps(1), 1, 2, 3, prefix=prefix, **options), prefix)


@pytest.mark.parametrize("options", [{"num_beam": 2}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.9}])
def test_beam_search_excludes_what_draws(options):
    with pytest.raises(ValueError, match=f"beams is 4: .*leave {next(iter(options))} out"):
        check(beams=4, **options)


@pytest.mark.parametrize("options", [{"num_beam": 2}, {"beams": 2}])
def test_steps_that_cannot_select_refuse(options):
    with pytest.raises(ValueError, match="leave num_beam and beams out"):
        generate(Counting([]), 2, 3, 4, **options)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
@pytest.mark.parametrize("kept", [0, 2, GRID[0]])
@pytest.mark.parametrize("name", ["AutoregressiveModel", "uniform"])
def test_rows_that_are_watched_are_those_of_the_whole_grid(name, kept, options):
    prior = Uniform(K) if name == "uniform" else build(name)
    prefix = torch.zeros(3, kept, GRID[1], dtype=torch.int64)
    grids = prior.generate(3, *GRID, prefix=prefix, generator=seeded(4), **options)
    rows = list(prior.generate_rows(3, *GRID, prefix=prefix, generator=seeded(4), **options))
    assert torch.equal(rows[-1], grids)
    assert all(torch.equal(grids[:, : part.shape[1]], part) for part in rows)
    if name != "uniform":
        assert [part.shape[1] for part in rows] == ([*range(kept + 1, GRID[0] + 1)] or [kept])
