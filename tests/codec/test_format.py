"""The file format, without models: exact frequencies, short payloads, and never a wrong grid, whatever a file's bytes."""

import io
import math
import struct
import tempfile
import time
import tracemalloc
import unittest.mock
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import mutations
from bench.mutations import mutate, repaired
from homework.codec import archive, format, range_coder, tiles
from homework.codec.archive import ArchiveWriter, Reader
from homework.codec.format import ARCHIVE, IMAGE, ModelPair
from homework.codec.range_coder import TOTAL, BatchDecoder

K = 16
TOKENIZER, PRIOR = bytes(range(32)), bytes(range(100, 132))


def models_of(tokenizer: bytes = TOKENIZER, prior: bytes = PRIOR, patch: int = 5, exact: bool = True) -> ModelPair:
    """Files of any format know both models by the same hashes."""
    return ModelPair({1: (tokenizer, prior), 2: (tokenizer, prior)}, patch, exact, b"" if exact else b"\x12\x34")


MODELS, IN_FLOATS = models_of(), models_of(exact=False)


# --- a cheap prior: the frequencies of a token depend on the one before it ------------------------------------------------


def integer_weights(p: np.ndarray) -> np.ndarray:
    """Any positive numbers (n,K) -> weights (n,K) in their proportion, as a prior has to return them."""
    w = np.floor(p / p.sum(axis=1, keepdims=True) * (TOTAL - p.shape[1]))
    w[:, 0] += TOTAL - p.shape[1] - w.sum(axis=1)
    return w.astype(np.float32)


TABLE = integer_weights(np.random.default_rng(0).dirichlet(np.full(K, 0.3), K + 1) + 1e-9)


def code(grid: np.ndarray) -> bytes:
    """(h,w) -> payload, as of formats without a sharpness: what is in a payload is not the file's affair."""
    before = TABLE[np.concatenate([[K], grid.flatten()[:-1]])]
    return range_coder.encode(*range_coder.intervals(before, grid.flatten()))


def decode(payloads: list[bytes], size: tuple[int, int], steps: list | None = None) -> list[np.ndarray]:
    streams = BatchDecoder(payloads, [f"image {i}" for i in range(len(payloads))])
    last, tokens = np.full(len(payloads), K), []
    for _ in range(math.prod(size)):
        last = streams.next(TABLE[last])
        tokens.append(last)
        if steps is not None:
            steps.append(1)
    return list(np.stack(tokens, axis=1).reshape(-1, *size))  # (B,N) -> (B,h,w)


def draw_grid(size: tuple[int, int], seed: int) -> np.ndarray:
    """(h,w) drawn from the prior itself."""
    draw, tokens = np.random.default_rng(seed), [K]
    for _ in range(math.prod(size)):
        tokens.append(draw.choice(K, p=(TABLE[tokens[-1]].astype(float) + 1) / TOTAL))
    return np.array(tokens[1:]).reshape(size)


def image_bytes(pixels: tuple[int, int] = (10, 15), seed: int = 0, models: ModelPair = MODELS) -> bytes:
    grid = draw_grid((-(-pixels[0] // 5), -(-pixels[1] // 5)), seed)
    return format.image_file(models, pixels, code(grid), models.crc(pixels, grid))


def archive_bytes(sizes: list[tuple[int, int]], names: list[str] | None = None, models: ModelPair = MODELS) -> bytes:
    file = io.BytesIO()
    writer = ArchiveWriter(file, models)
    for i, size in enumerate(sizes):
        grid = draw_grid((-(-size[0] // 5), -(-size[1] // 5)), i)
        writer.add([names[i] if names else f"{i}.png"], [size], [code(grid)], [models.crc(size, grid)])
    writer.close()
    return file.getvalue()


def grids_in(data: bytes, steps: list | None = None) -> list[tuple]:
    """What a file says, decoded and checked: (name, (H,W), tokens) of every image."""
    reader, found = Reader(io.BytesIO(data)), []
    models = MODELS if reader.exact else IN_FLOATS
    reader.check(models)
    for i, name in enumerate(reader.names):
        (grid,) = decode([reader.payload(i)], reader.grid(i), steps)
        reader.check_tokens(i, models, grid)
        found.append((name, reader.sizes[i], grid.tobytes()))
    return found


# --- range-coded tokens ---------------------------------------------------------------------------------------------------


@st.composite
def coded_tokens(draw, n_tokens=st.sampled_from([1, 2, 3, 4, 16, 1000])):
    """(weights (N,K), tokens (N)): drawn from the weights, any, the most probable or the least probable."""
    random, n = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(n_tokens)
    N = draw(st.integers(1, 40))
    weights = integer_weights(random.dirichlet(np.full(n, draw(st.sampled_from([0.01, 0.3, 10]))), N) + 1e-30)
    how = draw(st.sampled_from(["drawn", "any", "most probable", "least probable", "first", "last"]))
    if how == "drawn":
        tokens = np.array([random.choice(n, p=(w.astype(float) + 1) / TOTAL) for w in weights])
    elif how == "any":
        tokens = random.integers(n, size=N)
    elif how in ("most probable", "least probable"):
        tokens = weights.argmax(axis=1) if how == "most probable" else weights.argmin(axis=1)
    else:
        tokens = np.full(N, 0 if how == "first" else n - 1)
    return weights, tokens


@given(coded_tokens())
def test_tokens_come_back(drawn):
    weights, tokens = drawn
    streams = BatchDecoder([range_coder.encode(*range_coder.intervals(weights, tokens))], ["a"])
    assert [int(streams.next(w[None])[0]) for w in weights] == tokens.tolist()
    streams.finish()


@given(coded_tokens(), st.integers(9, 2000))
def test_what_follows_the_tokens_in_a_payload_is_refused(drawn, n):
    weights, tokens = drawn
    payload = range_coder.encode(*range_coder.intervals(weights, tokens))
    streams = BatchDecoder([payload, payload + bytes(n)], ["a", "b"])
    decoded = [streams.next(np.repeat(w[None], 2, axis=0)) for w in weights]
    assert np.array_equal(decoded, np.repeat(tokens[:, None], 2, axis=1))
    with pytest.raises(ValueError, match="^b is damaged: it has .* bytes after its tokens"):
        streams.finish()


@given(coded_tokens())
def test_intervals_are_sums_of_frequencies(drawn):
    weights, tokens = drawn
    frequencies = weights.astype(np.int64) + 1
    cumulative, frequency = range_coder.intervals(weights, tokens)
    assert (frequencies.sum(axis=1) == TOTAL).all()
    assert cumulative.tolist() == [f[:t].sum() for f, t in zip(frequencies, tokens, strict=True)]
    assert frequency.tolist() == [f[t] for f, t in zip(frequencies, tokens, strict=True)]


@given(coded_tokens(st.sampled_from([2, 3, 16, 1000])))
def test_the_coder_uses_our_integers_and_no_others(drawn):
    """The interval of constriction's coder among all K tokens is that of a coder in Python's integers, to the last digit."""
    weights, tokens = drawn
    coder = range_coder.RangeEncoder()
    coder.encode(tokens.astype(np.int32), range_coder.Categorical(perfect=False), weights)
    lower, width, words = 0, 2**64 - 1, 0
    for cumulative, frequency in zip(*(x.tolist() for x in range_coder.intervals(weights, tokens)), strict=True):
        share = width // TOTAL
        lower, width = lower + share * cumulative, share * frequency
        if width < 2**32:
            lower, width, words = lower * 2**32, width * 2**32, words + 1
    assert coder.pos() == (words, (lower % 2**64, width))
    payload = range_coder.encode(*range_coder.intervals(weights, tokens))
    assert payload == range_coder.finish(coder)  # so three symbols a token are as good as K
    number = int.from_bytes(payload.ljust(4 * words + 8, b"\0"), "big")
    assert lower <= number < lower + width
    shorter = int.from_bytes(payload[:-1].ljust(4 * words + 8, b"\0"), "big")
    assert len(payload) == 4 * words or not any(lower <= shorter + n * 256 ** (4 * words + 9 - len(payload)) < lower + width
                                                for n in (0, 1))  # fmt: skip


@given(coded_tokens())
def test_a_payload_is_as_long_as_its_tokens_are_unlikely(drawn):
    weights, tokens = drawn
    payload = range_coder.encode(*range_coder.intervals(weights, tokens))
    bits = (24 - np.log2(weights[np.arange(len(tokens)), tokens].astype(float) + 1)).sum()
    assert bits - 32 < 8 * len(payload) < bits + 10


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_streams_in_lockstep_are_those_one_by_one(S, T, seed):
    """S payloads, of each T tokens at a time."""
    random = np.random.default_rng(seed)
    weights = integer_weights(random.dirichlet(np.ones(K), 6 * S * T)).reshape(6, S, T, K)
    tokens = random.integers(K, size=(6, S, T))
    parts = [range_coder.intervals(weights[:, s].reshape(-1, K), tokens[:, s].flatten()) for s in range(S)]
    streams = BatchDecoder([range_coder.encode(*part) for part in parts], [""] * S)
    for step in range(6):
        assert (streams.next(weights[step].reshape(-1, K)).reshape(S, T) == tokens[step]).all()


@given(*[st.integers(1, 90)] * 2, *[st.integers(1, 20)] * 2)
def test_tiles_cover_a_grid_once(h, w, height, width):
    covered, sizes = np.zeros((h, w), int), []
    for (a, b), corners in tiles.tiles((h, w), (height, width)):
        assert 1 <= a <= height and 1 <= b <= width and 1 <= len(corners) <= tiles.TILES
        sizes += [(a, b)] * (not sizes or sizes[-1] != (a, b))
        for top, left in corners:
            assert top + a <= h and left + b <= w
            covered[top : top + a, left : left + b] += 1
    assert (covered == 1).all() and len(sizes) == len(set(sizes)) <= 4


# --- one image ------------------------------------------------------------------------------------------------------------

image_sizes = st.tuples(st.integers(1, 2**26), st.integers(1, 2**26)).filter(lambda s: math.prod(s) <= format.MAX_PIXELS)
image_sizes |= st.tuples(st.integers(1, 8192), st.integers(1, 8192))


@given(image_sizes, st.binary(max_size=300), st.integers(0, 2**32 - 1), st.integers(1, 127), st.booleans())
def test_a_file_holds_what_was_put_in(size, payload, crc, patch, exact):
    models = models_of(patch=patch, exact=exact)
    data = format.image_file(models, size, payload, crc)
    reader = Reader(io.BytesIO(data))
    reader.check(models)
    assert (reader.kind, reader.sizes, reader.crcs, reader.payload(0)) == (IMAGE, [size], [crc], payload)
    assert (reader.patch, reader.exact, reader.length) == (patch, exact, len(data))
    assert reader.grid(0) == (math.ceil(size[0] / patch), math.ceil(size[1] / patch))
    longest = format.leb128(3 * format.MAX_PIXELS + 8)  # every pixel a token of 24 bits
    assert len(data) - len(payload) - len(format.leb128(len(payload))) + len(longest) <= 22 + 2 * (not exact)


def test_a_frame_needs_18_bytes_beyond_its_payload():
    assert len(format.image_file(MODELS, (100, 150), bytes(250), 0)) == 250 + 18
    assert len(format.image_file(IN_FLOATS, (100, 150), bytes(250), 0)) == 250 + 20


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (8193, 8192), (1, 2**26 + 1)])
def test_too_large_an_image_is_refused_in_both_directions(size):
    with pytest.raises(ValueError, match="67,108,864"):
        format.image_file(MODELS, size, b"", 0)
    header = MODELS.head(IMAGE) + b"".join(map(format.leb128, (size[1], size[0], 0)))
    with pytest.raises(ValueError, match="67,108,864"):
        Reader(io.BytesIO(header + bytes([format.crc8(header)]) + bytes(4)))


# --- archives -------------------------------------------------------------------------------------------------------------

safe_names = st.text(st.characters(exclude_characters="\0/\\:", exclude_categories=()), min_size=1, max_size=8)
safe_names = st.lists(safe_names.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map("/".join)


def is_one_of_few(names: list[str]) -> bool:
    """Whether no name is the folder of another: all can be files together."""
    return not any(other.startswith(f"{name}/") for name in names for other in names)


def is_writable(name: str) -> bool:  # a lone surrogate is how Python shows a byte that is not UTF-8; no file has others
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == name
    except UnicodeError:
        return False


lists_of_names = st.lists(safe_names.filter(is_writable), unique=True, min_size=1, max_size=9)


@given(lists_of_names.filter(is_one_of_few), st.data())
def test_an_archive_holds_what_was_put_in(names, data):
    contents = st.tuples(image_sizes, st.binary(max_size=20), st.integers(0, 2**32 - 1))
    images = [(name, *data.draw(contents)) for name in names]
    file, chunks = io.BytesIO(), []
    writer, left = ArchiveWriter(file, MODELS), images
    while left:
        n = data.draw(st.integers(1, len(left)))
        writer.add(*zip(*left[:n], strict=True))
        chunks, left = [*chunks, n], left[n:]
    writer.close()
    reader = Reader(file)
    reader.check(MODELS)
    payloads = [reader.payload(i) for i in range(len(names))]
    assert list(zip(reader.names, reader.sizes, payloads, reader.crcs, strict=True)) == images
    assert [len(chunk) for chunk in reader.chunks] == chunks and reader.kind == ARCHIVE


class Watched(io.BytesIO):
    """Notes which bytes were read."""

    seen = ()

    def read(self, n=-1):
        at = self.tell()
        found = super().read(n)
        self.seen = [*self.seen, range(at, at + len(found))]
        return found


def test_one_image_is_read_without_the_rest():
    data = archive_bytes([(50, 75)] * 40)
    watched = Watched(data)
    reader = Reader(watched)
    assert decode([reader.payload(17)], reader.grid(17))[0].tobytes() == draw_grid((10, 15), 17).tobytes()
    others = {n for i in range(1, 40) if i != 17 for n in range(reader.starts[i], reader.starts[i] + reader.lengths[i])}
    assert not others.intersection(*[set().union(*map(set, watched.seen))]) - set(range(64))  # where headers are looked for


def test_an_archive_of_frames_needs_about_as_many_bytes_an_image_as_its_crc_and_name():
    names = [f"frame_{i:05d}.jpg" for i in range(1000)]
    file = io.BytesIO()
    writer = ArchiveWriter(file, MODELS)
    draw = np.random.default_rng(0)
    for i in range(0, 1000, 50):
        payloads = [draw.bytes(draw.integers(200, 300)) for _ in range(50)]
        writer.add(names[i : i + 50], [(100, 150)] * 50, payloads, draw.integers(2**32, size=50).tolist())
    writer.close()
    assert (len(file.getvalue()) - sum(Reader(file).lengths)) / 1000 < 9


@given(lists_of_names | st.lists(st.text("aB.pngj/", max_size=9), min_size=1, max_size=5))
def test_names_are_refused_in_both_directions_or_can_all_be_unpacked(names):
    """Into a folder, and nowhere else."""
    try:
        data = archive_bytes([(5, 5)] * len(names), names)
    except ValueError:
        with unittest.mock.patch.multiple(archive, check_names=lambda names: None, target_names=lambda names: names):
            data = archive_bytes([(5, 5)] * len(names), names)
        with pytest.raises(ValueError):
            archive.target_names(Reader(io.BytesIO(data)).names)
        return
    targets = archive.target_names(Reader(io.BytesIO(data)).names)
    with tempfile.TemporaryDirectory() as folder:
        for i, target in enumerate(targets):
            path = Path(folder, "in", target)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("xb").close()
            assert path.resolve().is_relative_to(Path(folder, "in").resolve()), names[i]
            assert PurePosixPath(target).parent == PurePosixPath(names[i]).parent and target.endswith(".png")


@pytest.mark.parametrize("names, targets", [
    (["a.jpg", "b/c.tif", "d", ".hidden", "e.f.gif"], ["a.png", "b/c.png", "d.png", ".hidden.png", "e.f.png"]),
    (["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]),
    (["a.jpg", "a.png/x.jpg", "b.jpg"], ["a.jpg.png", "a.png/x.jpg.png", "b.jpg.png"]),
    (["a.jpg", "a.png-1/x.jpg", "a.png/x.jpg"], ["a.jpg.png", "a.png-1/x.jpg.png", "a.png/x.jpg.png"]),
    (["x" * 251 + ".jpg"], ["x" * 251 + ".png"]),
])  # fmt: skip
def test_what_images_are_called_when_unpacked(names, targets):
    assert archive.target_names(names) == targets


@pytest.mark.parametrize("names", [["a", "a.png/b"], ["a", "a"], ["x" * 255], ["a.jpg", "a.png", "x" * 252]])
def test_names_that_cannot_be_unpacked_are_refused(names):
    with pytest.raises(ValueError, match="cannot"):
        archive_bytes([(5, 5)] * len(names), names)


UNSAFE = ["../a", "a/../../b", "/etc/a", "a\0b", "", ".", "..", "a/..", "./a", "a//b", "a/", "a/./b", "a/" * 1900 + "b",
          "x" * 256, "x" * 256 + "/a", "/".join(["x" * 100] * 41), "a\n/..", "..\n/../a"]  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_names_that_lead_elsewhere_are_refused_in_both_directions(name, monkeypatch):
    with pytest.raises(ValueError, match="cannot be a name"):
        archive_bytes([(5, 5)], [name])
    with monkeypatch.context() as patched:
        patched.setattr(archive, "check_names", lambda names: None)
        data = archive_bytes([(5, 5)], [name])
    with pytest.raises(ValueError, match="damaged.*(cannot be a name|do not fit|larger than allowed)"):
        Reader(io.BytesIO(data))


def test_an_archive_holds_no_two_images_of_one_name():
    with pytest.raises(ValueError, match="two images of one name"):
        archive_bytes([(5, 5)] * 2, ["a"] * 2)


def test_too_many_images_for_an_archive():
    writer = ArchiveWriter(io.BytesIO(), MODELS)
    with pytest.raises(ValueError, match="too many images"):
        for i in range(200):
            writer.add([f"{i}/{j}/" + "/".join(["x" * 200] * 20) for j in range(25)], [(5, 5)] * 25, [b""] * 25, [0] * 25)
    with pytest.raises(ValueError, match=r"too many images for one archive \(5,000\)"):  # before the work
        ArchiveWriter(io.BytesIO(), MODELS).check_targets([f"{i}/" + "/".join(["x" * 200] * 20) for i in range(5000)])


# --- what is wrong with a file --------------------------------------------------------------------------------------------

FILES = {"image": image_bytes(), "archive": archive_bytes([(10, 15), (7, 3), (10, 15)])}
ALL_FILES = FILES | {"image in floats": image_bytes(models=IN_FLOATS),
                     "archive in floats": archive_bytes([(10, 15), (7, 3), (10, 15)], models=IN_FLOATS)}  # fmt: skip


@pytest.mark.parametrize("kind", ALL_FILES)
def test_every_shorter_file_is_cut_short(kind):
    for n in range(len(ALL_FILES[kind])):
        with pytest.raises(ValueError, match=f"cut short: it has {n}"):
            Reader(io.BytesIO(ALL_FILES[kind][:n]))


@pytest.mark.parametrize("kind", ALL_FILES)
def test_every_longer_file_is_reported(kind):
    for n in (1, 2, 100):
        with pytest.raises(ValueError, match="longer than it says"):
            Reader(io.BytesIO(ALL_FILES[kind] + bytes(n)))


@pytest.mark.parametrize("kind", ALL_FILES)
def test_every_flipped_bit_is_reported(kind):
    right, reader, reported = grids_in(ALL_FILES[kind]), Reader(io.BytesIO(ALL_FILES[kind])), 0
    for i in range(8 * len(ALL_FILES[kind])):
        data = bytearray(ALL_FILES[kind])
        data[i // 8] ^= 1 << i % 8
        try:
            assert grids_in(bytes(data)) == right  # the last bits of a payload may have changed within what means the same
            assert any(0 <= i // 8 - start < length for start, length in zip(reader.starts, reader.lengths, strict=True))
        except ValueError as error:
            assert ("is not a file" if i < 16 else "is damaged") in str(error), (i, error)
            reported += 1
    assert reported > 8 * len(ALL_FILES[kind]) - 30


@pytest.mark.parametrize("start", [b"x", b"\x89PNG\r\n\x1a\n" + bytes(99), b"\xff\xd8\xff\xe0", b"PK\3\4", bytes(50)])
def test_foreign_files_are_reported(start):
    with pytest.raises(ValueError, match="is not a file that homework.compress wrote"):
        Reader(io.BytesIO(start))


@pytest.mark.parametrize("kind", FILES)
def test_newer_files_are_reported(kind):
    with pytest.raises(ValueError, match="newer version.*format 8"):
        Reader(io.BytesIO(FILES[kind][:2] + bytes([8 + 16 * 7]) + b"nobody knows what comes here"))


@pytest.mark.parametrize("kind", FILES)
def test_there_is_no_format_0(kind):
    with pytest.raises(ValueError, match="damaged"):
        Reader(io.BytesIO(FILES[kind][:2] + bytes([16 * 15]) + FILES[kind][3:]))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    "other, message",
    [
        (models_of(tokenizer=bytes(32)), "another tokenizer.*begins with 0001.*begins with 0000"),
        (models_of(prior=bytes(32)), "another prior.*begins with 6465"),
        (models_of(patch=6), "another patch size"),
        (models_of(exact=False), "arithmetic"),
    ],
)
def test_other_models_are_reported(kind, other, message):
    with pytest.raises(ValueError, match=message):
        Reader(io.BytesIO(FILES[kind])).check(other)


@pytest.mark.parametrize("kind", ["image in floats", "archive in floats"])
def test_other_floats_are_reported_before_anything_is_decoded(kind):
    reader = Reader(io.BytesIO(ALL_FILES[kind]))
    with pytest.raises(ValueError, match="written by a machine whose floats differ from this one's .*; decompress it there"):
        reader.check(ModelPair(IN_FLOATS.fingerprints, 5, False, b"\x12\x35"))
    with pytest.raises(ValueError, match="another prior"):  # which is said first: of another prior all floats differ
        reader.check(ModelPair(models_of(prior=bytes(32)).fingerprints, 5, False, b"\x12\x35"))
    with pytest.raises(ValueError, match="arithmetic"):
        reader.check(MODELS)


def test_hashes_that_begin_alike_are_distinguished_by_the_checksum():
    reader = Reader(io.BytesIO(FILES["image"]))
    alike = models_of(tokenizer=TOKENIZER[:2] + bytes(30))
    reader.check(alike)
    with pytest.raises(ValueError, match="checksum"):
        reader.check_tokens(0, alike, draw_grid((2, 3), 0))


def test_a_message_names_the_file_and_the_image():
    data = bytearray(FILES["archive"])
    reader = Reader(io.BytesIO(data), "some.file")
    data[reader.starts[1]] ^= 255
    with pytest.raises(ValueError, match=r"^some.file, image 1.png, is damaged.*\.$"):
        reader = Reader(io.BytesIO(data), "some.file")
        reader.check_tokens(1, MODELS, decode([reader.payload(1)], reader.grid(1))[0])


# --- bounded time and memory ----------------------------------------------------------------------------------------------


def test_a_wrong_header_cannot_make_decoding_long():
    """It claims 2.7 million tokens, of which its few bytes can hold some dozens."""
    size = (8192, 8192)
    data, steps = format.image_file(MODELS, size, b"some bytes", 0), []
    with pytest.raises(ValueError, match="more bytes than it has|cannot be decoded"):
        grids_in(data, steps)
    assert len(steps) < 2000


def wrong_archive(index: bytes) -> bytes:
    """With all checksums right."""
    at = archive.first_payload(MODELS.head(ARCHIVE))
    header = MODELS.head(ARCHIVE) + archive.PLACES.pack(at, at + len(index) + 4)
    return header + struct.pack("<I", zlib.crc32(header)) + index + struct.pack("<I", zlib.crc32(index))


@pytest.mark.parametrize(
    "index",
    [
        zlib.compress(bytes(2**30), 9),  # a gigabyte of zeros
        zlib.compress(struct.pack("<II", 2**32 - 1, 2**32 - 1)),
        zlib.compress(struct.pack("<II", 2**31, 1) + bytes(100)),
        zlib.compress(b""),
        zlib.compress(bytes(8)),
        zlib.compress(struct.pack("<II", 1, 1) + bytes(18)),
        zlib.compress(bytes(8))[:-3],
        zlib.compress(bytes(8)) + b"more",
        b"no zlib",
        b"",
    ],
    ids=range(10),
)
def test_a_wrong_index_takes_little_memory(index):
    data = io.BytesIO(wrong_archive(index))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="damaged"):
            Reader(data)
        assert tracemalloc.get_traced_memory()[1] < 4 * archive.MAX_INDEX
    finally:
        tracemalloc.stop()


def many_names(n: int) -> bytes:
    """An archive of n images without payloads, the last of which has a wrong name."""
    columns = b"".join(bytes([one if k == 0 else 0]) * n for one in (1, 1, 0, 0) for k in range(4))
    names = b"\0".join([*(b"%d" % i for i in range(n - 1)), b".."])
    return wrong_archive(zlib.compress(struct.pack("<II", n, n) + bytes([1]) * n + columns + names, 1))


def test_claims_are_refused_in_proportion_to_a_file():
    """Many names take little time; and claims that the file is too short for take none, and no memory."""
    data, n, start = io.BytesIO(many_names(100_000)), 690_000, time.process_time()
    with pytest.raises(ValueError, match="cannot be a name"):
        Reader(data)
    assert time.process_time() - start < 2
    data = io.BytesIO(wrong_archive(zlib.compress(struct.pack("<II", n, n) + bytes(17 * n) + b"a\0" * n, 1)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="it claims 690,000 images"):
            Reader(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("n, change", [(90_000, mutate), (12_000, repaired)], ids=["mutated", "repaired"])
def test_no_mutation_gives_a_wrong_grid(n, change):
    """More than 100 000 random ones: each ends in a ValueError, or says exactly what the file text before."""
    draw = np.random.default_rng(0)
    originals = [image_bytes(seed=i, models=(MODELS, IN_FLOATS)[i % 2]) for i in range(4)] + [image_bytes((3, 9))]
    originals += [archive_bytes([(10, 15), (7, 3)], models=models) for models in (MODELS, IN_FLOATS)]
    right = [grids_in(data) for data in originals]
    refused, steps = 0, []
    for k in draw.integers(len(originals), size=n).tolist():
        data = change(originals[k], draw)
        try:
            found = grids_in(data, steps)
        except ValueError:
            refused += 1
        else:  # a wrong index may have other names, or an image twice; but a grid is always one that was coded, at its size
            assert {image[1:] for image in found} <= {image[1:] for image in right[k]}
            assert change is repaired or found == right[k]
    assert refused > 0.9 * n
    assert len(steps) < 100 * n  # and none took long


def test_the_command_that_mutates_files_reports_one_that_is_read_as_another(tmp_path, monkeypatch, capsys):
    mutations.mutations(n=45, keep=str(tmp_path))
    assert "45 files; to continue: --start 45" in capsys.readouterr().out and not list(tmp_path.iterdir())
    monkeypatch.setattr(Reader, "check_tokens", lambda *args: None)
    with pytest.raises(ValueError, match="Mutation .*is not refused.*read as another"):
        mutations.mutations(n=2000, start=45, keep=str(tmp_path))
    (kept,) = tmp_path.iterdir()
    kind, k = kept.name.split("_")
    assert kept.read_bytes() == mutations.mutated(int(k), mutations.make()[kind][0])[1]


# --- files of before ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2, 3, 5, 6])
def test_golden_files_still_mean_the_same(version):
    image, two_images = map(bytes.fromhex, GOLDEN[version])
    assert grids_in(image) == [("", (10, 15), draw_grid((2, 3), 0).tobytes())]
    two = [("0.png", (10, 15), draw_grid((2, 3), 0).tobytes()), ("1.png", (7, 3), draw_grid((2, 1), 1).tobytes())]
    assert grids_in(two_images) == two
    assert Reader(io.BytesIO(image)).version == Reader(io.BytesIO(two_images)).version == version


def test_files_are_written_as_the_golden_ones_of_this_version():
    for models, version in (MODELS, format.FORMAT), (IN_FLOATS, format.FLOAT_FORMAT):
        assert (image_bytes(models=models).hex(), models.version) == (GOLDEN[version][0], version)


@pytest.mark.parametrize("version", [1, 2])
def test_files_in_floats_of_earlier_versions_have_no_probe_and_are_read_without(version):
    grid = draw_grid((2, 3), 0)
    header = IN_FLOATS.head(IMAGE, version) + bytes([15, 10, len(payload := code(grid))])
    crc = struct.pack("<I", IN_FLOATS.crc((10, 15), grid, version))
    data = header + bytes([format.crc8(header)]) + payload + crc
    assert len(data) == len(image_bytes()) and grids_in(data) == grids_in(image_bytes())


@pytest.mark.parametrize("kind", FILES)
def test_files_of_either_version_know_their_models_by_the_hashes_of_their_own(kind):
    """ModelPair with other hashes for the other version read the file; those with others for its own do not."""
    own, other = (TOKENIZER, PRIOR), (bytes(32), bytes(32))
    reader = Reader(io.BytesIO(FILES[kind]))
    reader.check(ModelPair({1: other, 2: own}, 5, True))
    reader.check_tokens(0, ModelPair({1: other, 2: own}, 5, True), draw_grid((2, 3), 0))
    for check in reader.check, lambda models: reader.check_tokens(0, models, draw_grid((2, 3), 0)):
        with pytest.raises(ValueError, match="another tokenizer|checksum"):
            check(ModelPair({1: own, 2: other}, 5, True))


GOLDEN = {
    1: (
        "b531e100016465050f0a03a6a433c7631c4507",
        "b54ee10001646505200000000000000051000000000000009498e4eba433c78378da6362606060026"
        "246462e760630e06786d0cc8c103a7992cc06d718f627067a0579e90c862012004bf006c24bbcae6d",
    ),
    2: (
        "b531d200016465050f0a03a5a433c7631c4507",
        "b54ed200016465052000000000000000510000000000000056edf4f3a433c78378da6362606060026"
        "246462e760630e06786d0cc8c103a7992cc06d718f627067a0579e90c862012004bf006c24bbcae6d",
    ),
    3: (
        "b531c3000164658512340f0a0387a433c7b61ea87f",
        "b54ec30001646585123422000000000000005300000000000000f803f736a433c78378da63626060"
        "60026246462e760630e06786d0cc8c107a5b955cf58a0bf571067a0579e90c86201200593007938990dfa5",
    ),
    5: (
        "b531a500016465050f0a035fa433c7631c4507",
        "b54ea500016465052000000000000000510000000000000053280b7da433c78378da6362606060026"
        "246462e760630e06786d0cc8c103a7992cc06d718f627067a0579e90c862012004bf006c24bbcae6d",
    ),
    6: (
        "b53196000164658512340f0a03c6a433c7b61ea87f",
        "b54e960001646585123422000000000000005300000000000000087d6387a433c78378da63626060"
        "60026246462e760630e06786d0cc8c107a5b955cf58a0bf571067a0579e90c86201200593007938990dfa5",
    ),
}
