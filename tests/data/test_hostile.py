"""Archives, tables and lists of strangers: each ends with a sentence, in bounded memory and time."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from resnext_hub.data import archives, parquet, table_cells
from resnext_hub.data.file_names import IMAGES
from resnext_hub.data.labels import list_images
from resnext_hub.data.parquet_footer import read_footer
from resnext_hub.data.source import shards
from resnext_hub.data.table_cells import as_label, parse_label
from resnext_hub.errors import FetchError, SourceError
from resnext_hub.processing_utils.images import FORMATS
from resnext_hub.processing_utils.uris import MAX_BYTES

from ..fuzz import seeds
from ..fuzz.targets import read_source, repair_tar
from ..support.data_sets import images, members, picture, table, tar, write, zipped
from ..support.processes import peak

SEEDS = dict(seeds.sources())
LIMIT = 3 * 2**30  # of address space, with Arrow and numpy loaded


def header(
    name: str = "a.png", size: bytes = b"00000000000", kind: bytes = b"0", magic: bytes = b"ustar\x0000"
) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108], block[124 : 124 + len(size)] = b"0000644\0", size
    block[156:157], block[257:265] = kind, magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def binary(number: int) -> bytes:
    return (number & (2**96 - 1)).to_bytes(12, "big") if number < 0 else (number | 1 << 95).to_bytes(12, "big")


def pax(records: bytes) -> bytes:
    return header("x", b"%011o" % len(records), b"x") + records.ljust(-(-len(records) // 512) * 512, b"\0")


def record(text: bytes) -> bytes:
    length = len(text) + 3
    length += len(str(length)) - 1
    return b"%d %s\n" % (length, text)


IMAGE = header(size=b"%011o" % len(picture(0))) + picture(0).ljust(-(-len(picture(0)) // 512) * 512, b"\0")
ARCHIVES: dict[str, bytes] = {
    "a negative size": header(size=binary(-512)),
    "a negative octal size": header(size=b"-0000000512"),
    "a size of 2^60": header(size=binary(2**60)),
    "a size of 2^60 in pax": pax(record(b"size=%d" % 2**60)) + header(),
    "a negative size in pax": pax(record(b"size=-1")) + header(),
    "a long name of 1 GB": header("x", b"%011o" % 2**30, b"L"),
    "a pax record of 1 GB": header("x", b"%011o" % 2**30, b"x"),
    "a pax record without an end": pax(b"999999999 path=x\n"),
    "a pax record of length 0": pax(b"0 path=x\n"),
    "a sparse file": header(kind=b"S"),
    "a sparse file in pax": pax(record(b"GNU.sparse.major=1")) + header(),
    "a damaged header": IMAGE[:3] + b"?" + IMAGE[4:],
    "a header that breaks off": IMAGE + header()[:300],
    "a zip without its end": b"PK\x03\x04" + bytes(100),
    "no archive": b"something else" * 100,
    "nothing": b"",
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_one_row_with_an_error(name: str, tmp_path: Path) -> None:
    content = ARCHIVES[name]
    for name, written in (("t.tar", content), ("t.tar.gz", zlib.compress(content, wbits=31))):
        path = str(write(tmp_path / name, written))
        *_, last = next(shards([path], 9)).items()
        with pytest.raises(FetchError, match=name):
            last.read()
        with pytest.raises(SourceError, match=name):
            list_images([path])


def test_tars_of_every_writer(tmp_path: Path) -> None:
    long = "folder/" * 30 + "é.png"
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        name = long if kind != tarfile.USTAR_FORMAT else "f" * 100 + "/" + "é.png"
        path = tar(tmp_path / f"{kind}.tar", {name: picture(0), "b.png": picture(1)}, format=kind)
        (shard,) = shards([str(path)], 9)
        assert [item.name.removeprefix(f"{path}/") for item in shard.items()] == [name, "b.png"]
        assert [shard.read(i) for i in (1, 0)] == [picture(1), picture(0)]
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        write(tmp_path / "a.png", picture(0))
        os.link(tmp_path / "a.png", tmp_path / "hard.png")
        os.symlink("a.png", tmp_path / "soft.png")
        for name in ("a.png", "hard.png", "soft.png"):
            archive.add(tmp_path / name, name)
    (shard,) = shards([str(tmp_path / "links.tar")], 9)
    assert len(list(shard.items())) == 1


def test_large_members_of_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    monkeypatch.setattr(archives, "SKIPPED_BYTES", 2000)
    content = {"a.png": b"x" * 1001, "b.png": b"y" * 1000}
    for path in (tar(tmp_path / "t.tar", content), zipped(tmp_path / "t.zip", content)):
        first, second = next(shards([str(path)], 9)).items()
        with pytest.raises(FetchError, match="1,001 bytes"):
            first.read()
        assert second.read() == b"y" * 1000
    path = tar(tmp_path / "t.tar.gz", {"film.mov": bytes(2001), "b.png": b"y"}, lambda d: zlib.compress(d, wbits=31))
    (item,) = next(shards([str(path)], 9)).items()
    with pytest.raises(FetchError, match="2,001 bytes"):
        item.read()


def test_zips_that_lie(tmp_path: Path) -> None:
    good = zipped(tmp_path / "t.zip", {"a.png": picture(0), "b.png": picture(1)}).read_bytes()
    at = good.index(b"PK\x01\x02")
    damaged = good[:60] + bytes([good[60] ^ 1]) + good[61:]
    lying = good[: at + 24] + (5).to_bytes(4, "little") + good[at + 28 :]  # says 5 bytes
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", picture(0))
    write(tmp_path / "damaged.zip", damaged)
    write(tmp_path / "lying.zip", lying)
    for name in ("damaged", "lying", "lzma"):
        first, *others = next(shards([str(tmp_path / f"{name}.zip")], 9)).items()
        with pytest.raises(FetchError, match=r"a\.png"):
            first.read()
        assert name != "damaged" or [item.read() for item in others] == [picture(1)]


BOMB = """
import resource, sys
from resnext_hub.data.source import shards
from resnext_hub.data.labels import list_images
from resnext_hub.processing_utils.uris import FetchError
from resnext_hub.errors import SourceError
from resnext_hub.tests.support.processes import peak
import pyarrow.parquet, numpy
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
try:
    for shard in shards([{path!r}], 4096):
        for item in shard.items():
            try: item.read()
            except FetchError: pass
        for number in range(3):
            try: shard.read(number)
            except (FetchError, SourceError): pass
except (FetchError, SourceError) as error:
    print(error)
print("ended", peak(reset=False))
"""


def zeros(path: Path, size: int, rows: int, kind: Any) -> Path:
    cell = pa.array([bytes(size)], pa.binary()).cast(kind)
    table = pa.table({"image": pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), cell)})
    pq.write_table(table, path, compression="zstd", store_schema=False)
    return path


@pytest.mark.parametrize("kind", [pa.binary(), pa.string()], ids=str)
def test_a_table_of_zeros_stays_small(kind: Any, tmp_path: Path) -> None:
    """Cells that are in the file once, and 1,000 times in the memory of who believes it."""
    path = zeros(tmp_path / "t.parquet", 14_400_000, 1000, kind)
    assert path.stat().st_size < 20_000
    script = BOMB.format(limit=LIMIT, path=str(path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.rpartition("\n")[0].startswith(("ended", str(path))), done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) < 1500


def test_a_cell_has_at_most_the_bytes_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_cells, "MAX_BYTES", 1000)
    pq.write_table(pa.table({"image": [b"x" * 1001, b"y" * 1000]}), tmp_path / "t.parquet")
    (shard,) = shards([str(tmp_path / "t.parquet")], 9)
    first, second = shard.items()
    for read in (first.read, lambda: shard.read(0)):
        with pytest.raises(FetchError, match="1,001 bytes"):
            read()
    assert second.read() == shard.read(1) == b"y" * 1000


@pytest.mark.parametrize("name", ["list.txt", "t.csv", "t.parquet"])
def test_paths_of_devices_and_pipes_are_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    paths = ["/dev/zero", str(tmp_path / "pipe")]
    if name == "t.parquet":
        pq.write_table(pa.table({"path": paths, "label": ["a", "b"]}), tmp_path / name)
    else:
        lines = paths if name == "list.txt" else ["path,label", *(f"{path},a" for path in paths)]
        write(tmp_path / name, "\n".join(lines))
    (shard,) = shards([str(tmp_path / name)], 9)
    for i, item in enumerate(shard.items()):
        for read in (item.read, lambda i=i: shard.read(i)):
            with pytest.raises(FetchError):
                read()


def test_lists_that_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for content, name, fact in (
        (b"x" * 2**21, "l.txt", "1,048,576"),
        (b"a,b\n1,2\n", "l.csv", "a, b"),
        (b"{\n", "l.jsonl", "line 1"),
        (b'{"image": 3}\n', "l.jsonl", "line 1.*'image'"),
        (b"[" * 10**5, "l.jsonl", "line 1"),
        ("x\n".encode("utf-16")[:-1], "l.txt", r"l\.txt"),
        (None, "pipe.txt", r"pipe\.txt"),
    ):
        if content is not None:
            write(tmp_path / name, content)
        with pytest.raises(SourceError, match=fact):
            list(shards([str(tmp_path / name)], 9))


def damaged(content: bytes, random: Random) -> bytes:
    """Bytes changed, inserted, cut out and repeated."""
    made = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 5, 20))):
        at, end = random.randrange(len(made) + 1), random.randrange(600)
        change = random.choice(("byte", "insert", "cut", "repeat"))
        if change == "byte":
            made[at : at + 1] = random.randbytes(1)
        elif change == "insert":
            made[at:at] = random.randbytes(end % 9)
        elif change == "cut":
            del made[at : at + end]
        else:
            made[at:at] = made[end : 3 * end]
    return repair_tar(bytes(made))


@pytest.mark.parametrize("name", SEEDS)
def test_whatever_is_damaged_ends_with_an_error(name: str, tmp_path: Path) -> None:
    """Each item is read or raises FetchError; a source that cannot be listed raises SourceError; nothing else does."""
    random = Random(name)
    counts = [read_source(write(tmp_path / f"{i}-{name}", damaged(SEEDS[name], random))) for i in range(100)]
    read, refused = map(sum, zip(*counts, strict=True))
    assert refused
    assert read or name.endswith((".csv", ".tsv", ".jsonl", ".txt", "c.parquet"))


def test_a_table_with_a_damaged_footer_does_not_end_the_process(tmp_path: Path) -> None:
    """One bit of a length is enough for a C++ exception that Cython does not catch."""
    content = SEEDS["c.parquet"]
    size = int.from_bytes(content[-8:-4], "little") + 8
    refused = 0
    for at in range(len(content) - size, len(content) - 8):
        damaged = bytearray(content)
        damaged[at] ^= 3
        refused += read_source(write(tmp_path / f"{at}.parquet", bytes(damaged)))[1] > 0
    assert refused > 50


def test_a_footer_is_read_as_pyarrow_reads_it(tmp_path: Path) -> None:
    columns = {"image": [{"bytes": b"x" * i, "path": "a"} for i in range(90)], "label": [[i, 1] for i in range(90)]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=9)
    metadata = pq.read_metadata(tmp_path / "t.parquet")
    footer = read_footer((tmp_path / "t.parquet").read_bytes())
    assert footer.size == metadata.serialized_size + 8
    assert len(footer.groups) == metadata.num_row_groups == 10
    for i, (rows, chunks) in enumerate(footer.groups):
        assert rows == metadata.row_group(i).num_rows
        for j, chunk in enumerate(chunks):
            about = metadata.row_group(i).column(j)
            start = about.dictionary_page_offset or about.data_page_offset
            sizes = about.total_compressed_size, about.total_uncompressed_size
            assert chunk == (about.path_in_schema, start, *sizes)


def test_rows_are_not_held(tmp_path: Path) -> None:
    """Memory while they are listed does not grow with their number: 300,000 paths would take more than 20 MiB."""
    rows = [f"folder/{i:07}.jpg" for i in range(300_000)]
    write(tmp_path / "l.txt", "\n".join(rows))
    pq.write_table(pa.table({"path": rows}), tmp_path / "t.parquet")
    del rows
    parquet.open_table(str(tmp_path / "t.parquet"), parquet.Access())
    for name, start in (("l.txt", 0), ("t.parquet", 4090)):
        before, number = peak(), 0
        for shard in shards([str(tmp_path / name)], 4096):
            number += len(shard)
            if number == 8192:
                assert next(shard.items(start)).name == f"folder/{4096 + start:07}.jpg"
        assert number == 300_000
        assert peak(reset=False) - before < 12


def test_labels_as_people_write_them() -> None:
    assert [parse_label(t) for t in ("3\n", " cat ", "-1", "", "n01440764")] == [3, "cat", -1, -1, "n01440764"]
    assert [parse_label(t) for t in ("[1, 2]", '["cup", "espresso"]', "[x")] == [(1, 2), ("cup", "espresso"), "[x"]
    values = (3, -5, 2.0, 2.5, True, None, "", "7", [1, 2], [], {"a": 1}, [-1], [["a"]], ["a", ""])
    expected = [3, -1, 2, None, None, -1, -1, "7", (1, 2), (), None, None, None, None]
    assert [as_label(v) for v in values] == expected


def test_suffixes_are_those_of_the_formats_that_are_read() -> None:
    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert known <= set(IMAGES)
    assert set(IMAGES) - known <= {".avif", ".avifs", ".apng", ".mpo"}  # of a Pillow that was built without them


def test_archives_of_a_store_are_read_in_part(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name in ("s.tar", "s.zip", "s.tar.zst"):
        path = zipped(tmp_path / name, members()) if name == "s.zip" else tar(tmp_path / name, members())
        store.pipe_file(f"/arch/{name}", path.read_bytes())
        (shard,) = shards([f"memory://arch/{name}"], 9)
        assert [item.read() for item in shard.items()] == [shard.read(i) for i in range(6)] == list(members().values())
    path = table(tmp_path / "t.parquet", {"image": images(), "label": range(6)})
    store.pipe_file("/arch/t.parquet", path.read_bytes())
    listing = list_images(["memory://arch/t.parquet"])
    assert listing.labels == list(range(6))
    assert [listing.images.read(i) for i in (5, 0, 3)] == [picture(i) for i in (5, 0, 3)]
    assert io.BytesIO(next(listing.shards[0].items()).read()).getbuffer().nbytes < MAX_BYTES
