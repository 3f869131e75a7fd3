"""Zips and folders that are refused, and what of the others is unpacked."""

import io
import os
import stat
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grader import scratch, submission

FILES = {"homework/__init__.py": "", "homework/ae.py": "x = 1  # a text to find"}


def package(folder, names=("__init__", "ae", "bsq")):
    (folder / "homework").mkdir(parents=True)
    for name in names:
        (folder / f"homework/{name}.py").write_text("x = 1")
    return folder / "homework"


def zipped(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def unpacked(tmp_path, source):
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    out.mkdir()
    submission.unpack(source, out)
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def refusal(tmp_path, source):
    """The one sentence."""
    with pytest.raises(ValueError) as refused:
        unpacked(tmp_path, source)
    text = str(refused.value)
    assert text.isprintable() and text.endswith((".", "...")) and len(text) < 500
    return text


# --- zips ------------------------------------------------------------------------------------------------------------


def entry(name, mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "entries, reason",
    [
        ([entry("homework/../../evil")], "climbs out"),
        ([entry("../evil")], "climbs out"),
        ([entry("homework/..")], "climbs out"),
        ([entry("homework\\..\\evil")], "climbs out"),
        ([entry("__MACOSX/../../evil")], "climbs out"),
        ([entry("/etc/evil")], "absolute path"),
        ([entry("C:/evil")], "absolute path"),
        ([entry("homework/link", stat.S_IFLNK | 0o777)], "link or special file"),
        ([entry("homework/pipe", stat.S_IFIFO | 0o777)], "link or special file"),
        ([entry("homework/a.py"), entry("other/a.py")], "more than one top folder: homework, other"),
        ([entry("homework/a.py"), entry("readme.txt")], "more than one top folder"),
        ([entry("homework/a.py"), entry("\x1b[31m/\n")], r"more than one top folder: '\x1b[31m', homework"),
        ([entry("solution/a.py")], "top folder of the zip is 'solution'"),
        ([entry("homework")], "holds no folder homework/"),
        ([entry("homework/ae.py")], "holds no folder homework/ with an __init__.py"),
        ([entry("homework/__init__.pyc")], "top folder of the zip is 'missing'"),
        ([entry("homework/a"), entry("homework/a/b")], "cannot be unpacked"),
        ([entry("homework/" + "a/" * 3000 + "b")], "path of more than 255 characters"),
        ([entry("homework/" + "a" * 250 + "b")], "path of more than 255 characters"),
        ([], "top folder of the zip is 'missing'"),
    ],
)
def test_refused_zips_leave_nothing(tmp_path, entries, reason):
    zipped(tmp_path / "id.zip", {info: "target" for info in entries})
    (tmp_path / "scratch/out").mkdir(parents=True)
    with pytest.raises(ValueError) as refused:
        submission.unpack(tmp_path / "id.zip", tmp_path / "scratch/out")
    assert reason in str(refused.value) and str(refused.value).isprintable()
    if "unpacked" not in reason and "holds no" not in reason:
        assert not list((tmp_path / "scratch/out").iterdir())
    assert [path.name for path in tmp_path.rglob("*evil*")] == []


def test_large_and_broken_zips(tmp_path):
    path = tmp_path / "id.zip"
    path.write_bytes(b"PK no zip")
    assert "not a sound zip" in refusal(tmp_path, path)
    path.write_bytes(bytes(20_000_001))
    assert "at most 20 MB" in refusal(tmp_path, path)
    bomb = {f"homework/{i}": bytes(70_000_000) for i in range(3)}
    zipped(path, bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000 and "unpacks to 210 MB" in refusal(tmp_path, path)
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("homework/a.py", "1")
        archive.writestr("homework/a.py", "2")
    assert "twice" in refusal(tmp_path, path)
    with pytest.raises(FileNotFoundError):
        submission.unpack(tmp_path / "missing.zip", tmp_path)
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(FileNotFoundError):
        submission.unpack(tmp_path / "pipe.zip", tmp_path)


@pytest.mark.parametrize("name", ["homework//ae.py", "homework/./ae.py", "./homework/ae.py"])
def test_a_file_under_two_names(tmp_path, name):
    """What is run is what a reader sees."""
    assert "twice" in refusal(tmp_path, zipped(tmp_path / "id.zip", FILES | {name: "another text"}))


def test_damaged_contents(tmp_path):
    path = zipped(tmp_path / "id.zip", FILES)
    path.write_bytes(path.read_bytes().replace(b"a text to find", b"another text!!"))
    assert "not a sound zip: Bad CRC-32" in refusal(tmp_path, path)


SOUND = {kind: io.BytesIO() for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)}
for _kind, _stream in SOUND.items():
    zipped(_stream, FILES | {"homework/bsq.py": "y = 2\n" * 500}, _kind)


@given(st.sampled_from(sorted(SOUND)), st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=5))
def test_damage_of_any_kind_takes_one_sentence(tmp_path_factory, kind, damage):
    """Also a damaged LZMA stream, a header that lies, a name that is not a text."""
    data = bytearray(SOUND[kind].getvalue())
    for position, value in damage:
        data[position % len(data)] = value
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "id.zip").write_bytes(data)
    (folder / "out").mkdir()
    try:
        submission.unpack(folder / "id.zip", folder / "out")
    except ValueError as error:
        assert str(error).isprintable()
    assert {path.name for path in folder.iterdir()} == {"id.zip", "out"}


def test_a_damaged_lzma_stream(tmp_path):
    path = zipped(tmp_path / "id.zip", FILES | {"homework/bsq.py": os.urandom(2000).hex()}, zipfile.ZIP_LZMA)
    data = bytearray(path.read_bytes())
    middle = data.index(b"homework/bsq.py") + 200
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    assert "is not a sound zip" in refusal(tmp_path, path)


JUNK = {
    "__MACOSX/homework/._ae.py": "junk",
    "__MACOSX/._homework": "junk",
    ".DS_Store": "junk",
    "homework/.DS_Store": "junk",
    "homework/.git/config": "junk",
    "homework/__pycache__/ae.cpython-311.pyc": "junk",
    "homework/ae.pyc": "junk",
    "homework/fast.so": "junk",
    "homework/deep/fast.cpython-311-x86_64-linux-gnu.so": "junk",
    "homework/fast.pyd": "junk",
}


def test_compiled_code_and_what_a_mac_adds_is_left_out(tmp_path):
    kept = sorted([*FILES, "homework/deep/model.py"])
    files = FILES | {"homework/deep/model.py": ""} | JUNK
    assert unpacked(tmp_path, zipped(tmp_path / "id.zip", files)) == kept
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(content)
    assert unpacked(tmp_path, tmp_path / "in") == unpacked(tmp_path, tmp_path / "in/homework") == kept


# --- folders ---------------------------------------------------------------------------------------------------------


def test_folders(tmp_path):
    source = package(tmp_path / "a")
    names = ["homework/__init__.py", "homework/ae.py", "homework/bsq.py"]
    assert unpacked(tmp_path, source) == unpacked(tmp_path, source.parent) == names
    (tmp_path / "empty").mkdir()
    assert "neither is nor holds a package" in refusal(tmp_path, tmp_path / "empty")
    (source / "__init__.py").unlink()
    (source / "notes.txt").write_text("")
    assert "a holds no folder homework/ with an __init__.py." in refusal(tmp_path, source.parent)


def test_links_and_special_files_in_folders(tmp_path):
    source = package(tmp_path / "a")
    (source / "gone.py").symlink_to("nowhere")
    (source / "same.py").symlink_to("ae.py")
    assert unpacked(tmp_path, source)[-1] == "homework/same.py" and "homework/gone.py" not in unpacked(tmp_path, source)
    for name, target in ("secret", "/etc/passwd"), ("zero", "/dev/zero"), ("up", "../.."):
        (source / name).symlink_to(target)
        assert f"link that leads out of it, '{name}'" in refusal(tmp_path, source)
        (source / name).unlink()
    (source / "round").symlink_to(".")
    (source / "about").symlink_to(".")
    assert "path of more than 255 characters" in refusal(tmp_path, source)
    (source / "round").unlink()
    (source / "about").unlink()
    os.mkfifo(source / "pipe")
    assert "special file, 'pipe'" in refusal(tmp_path, source)


def test_large_and_deep_folders(tmp_path, monkeypatch):
    source = package(tmp_path / "a")
    with open(source / "large.pth", "wb") as file:
        file.truncate(201_000_000)
    assert "has 201 MB; at most 200 MB" in refusal(tmp_path, source)
    (source / "large.pth").unlink()
    monkeypatch.setattr(submission, "MAX_FILES", 2)
    assert "holds 3 files; at most 2" in refusal(tmp_path, source)
    monkeypatch.undo()
    here = os.open(source, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)
    try:
        assert "path of more than 255 characters, 'd/d/d" in refusal(tmp_path, source)
    finally:
        scratch.remove(source)  # pytest could not


def test_models(tmp_path):
    source = package(tmp_path / "a")
    (source / "pretrained").mkdir()
    for name in "B.pth", "pretrained/A.pth", "pretrained/B.pth":
        (source / name).write_text("")
    assert submission.models(tmp_path / "a") == ["pretrained/A.pth", "B.pth"]
    assert submission.checkpoint(tmp_path / "a", "A.pth") == "pretrained/A.pth"
    assert submission.checkpoint(tmp_path / "a", "B.pth") == "B.pth"
    for name in "C.pth", "../B.pth", "pretrained/A.pth", str(Path(source, "B.pth")):
        with pytest.raises(ValueError, match="There is no "):
            submission.checkpoint(tmp_path / "a", name)


def test_a_wrong_checksum_of_the_index_is_no_crash(tmp_path):
    path = zipped(tmp_path / "id.zip", FILES, zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    crc = zlib.crc32(FILES["homework/ae.py"].encode()).to_bytes(4, "little")
    assert crc in data
    path.write_bytes(data.replace(crc, bytes(4)))
    assert "not a sound zip" in refusal(tmp_path, path)
