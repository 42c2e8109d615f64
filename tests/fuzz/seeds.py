"""What the fuzzers begin with: small synthetic images of every format, URIs and answers; never anybody's photo."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from resnext_hub.tests.support.data_sets import table, tar, zipped, zstd

FOLDER = Path(__file__).resolve().parent


def picture(width: int = 24, height: int = 18) -> Image.Image:
    """Soft colours with an edge."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, np.where(x > y, 200, 30)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def images() -> Iterator[tuple[str, bytes]]:
    """(name, file): every format that is taken, in the modes and kinds that it has, less than 2 kB each."""
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        of_mode = deep if mode == "I;16" else image.quantize(8) if mode == "P" else image.convert(mode)
        yield f"{mode}.png", encoded(of_mode, "PNG")
        for compression in ("raw", "tiff_deflate", "tiff_lzw", "packbits"):
            yield f"{mode}.{compression}.tiff", encoded(of_mode, "TIFF", compression=compression)
    yield "transparent.png", encoded(image.quantize(8), "PNG", transparency=0)
    yield "animated.png", encoded(image, "PNG", save_all=True, append_images=[image.rotate(90)])
    yield "turned.png", encoded(image, "PNG", exif=exif)
    for mode in ("L", "RGB", "CMYK"):
        for name, options in (("", {}), (".progressive", {"progressive": True}), (".444", {"subsampling": 0})):
            if not (mode != "RGB" and name == ".444"):
                yield f"{mode}{name}.jpg", encoded(image.convert(mode), "JPEG", quality=60, **options)
    yield "turned.jpg", encoded(image, "JPEG", exif=exif, quality=60)
    yield "restarts.jpg", encoded(image, "JPEG", restart_marker_blocks=1, quality=60)
    yield "two.mpo", encoded(image, "MPO", save_all=True, append_images=[image.rotate(90)], quality=40)
    own = ("CMYK", "LAB") if int(PIL.__version__.split(".")[0]) < 13 else ("CMYK", "YCbCr", "LAB")  # before, not read
    for mode in own:
        yield f"{mode}.tiff", encoded(image.convert("RGB").convert(mode) if mode != "LAB" else _lab(image), "TIFF")
    yield "jpeg.tiff", encoded(image, "TIFF", compression="jpeg")
    yield "group4.tiff", encoded(image.convert("1"), "TIFF", compression="group4")
    yield "turned.tiff", encoded(image, "TIFF", exif=exif)
    yield "two.tiff", encoded(image, "TIFF", save_all=True, append_images=[image])
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"{mode}.bmp", encoded(image.quantize(8) if mode == "P" else image.convert(mode), "BMP")
        if mode != "P":
            yield f"{mode}.ppm", encoded(image.convert(mode), "PPM")
    yield "plain.ppm", b"P3 2 2 255\n# a comment\n1 2 3 4 5 6 7 8 9 10 11 12\n"
    yield "plain.pbm", b"P1 2 2\n0 1 1 0\n"
    yield "plain.pgm", b"P2 2 2 9\n1 2 3 9\n"
    yield "odd.pgm", b"P5 2 2 99\n\1\2\3\4"
    yield "P.gif", encoded(image.quantize(8), "GIF")
    yield "L.gif", encoded(image.convert("L"), "GIF", interlace=1, comment=b"text")
    yield "animated.gif", encoded(image.quantize(8), "GIF", save_all=True, append_images=[image.quantize(4).rotate(90)])
    if ".webp" in Image.registered_extensions():
        yield "lossy.webp", encoded(image, "WEBP", quality=30)
        yield "lossless.webp", encoded(image.convert("RGBA"), "WEBP", lossless=True)
        yield "animated.webp", encoded(image, "WEBP", save_all=True, append_images=[image.rotate(90)], quality=10)
        yield "turned.webp", encoded(image, "WEBP", exif=exif, quality=30)
    if ".avif" in Image.registered_extensions():
        yield "RGB.avif", encoded(image, "AVIF", quality=30)
        yield "RGBA.avif", encoded(image.convert("RGBA"), "AVIF", quality=30)


def _lab(image: Image.Image) -> Image.Image:
    return Image.merge("LAB", image.split())


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage"
PUBLIC = b"93.184.216.34,2606:2800:220:1::1"


def uris() -> Iterator[tuple[str, bytes]]:
    """(name, case): a URI, addresses and answers, as `targets.fetch_uri` takes them."""
    hosts = [
        b"photos.example.org", b"8.8.8.8", b"127.1", b"0x7f000001", b"2130706433", b"[::1]", b"[::ffff:10.0.0.1]",
        "bücher.example".encode(), "①②⑦.0.0.1".encode(), b"user:word@example.org", b"example.org:8080",
        b"[fe80::1%25eth0]",
        b"93.184.216.34@10.0.0.1", b"a_b.example.org.", b"metadata.google.internal",
        b"[64:ff9b::a00:1]", b"[2002:a00:1::]",
    ]  # fmt: skip
    for number, host in enumerate(hosts):
        yield f"host{number}", b"http://" + host + b"/a.jpg?x=1&y=%20#part\0" + PUBLIC + b"\0" + OK
    yield "https", b"https://photos.example.org/\0" + PUBLIC + b"\0\x16\x03\x03\0\x02"
    yield "private", b"http://photos.example.org/\x0010.0.0.1,8.8.8.8\0" + OK
    for number, to in enumerate(
        [b"/there", b"//other.example.org/", b"http://127.0.0.1/", b"http://[::1]/", b"file:///etc/passwd",
         b"\\\\host\\x",
         b"https://example.org/", b"http:/10.0.0.1", b"?x", b"http://169.254.169.254/latest/", b""]
    ):  # fmt: skip
        hop = b"HTTP/1.1 302 Found\r\nLocation: " + to + b"\r\nContent-Length: 0\r\n\r\n"
        yield f"redirect{number}", b"http://photos.example.org/a/b\0" + PUBLIC + b"\0" + hop + b"\0" + OK
    answers = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nimage\r\n0\r\nA: b\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nimage",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nimage",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/5\r\n\r\nimage",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n",
        b"not HTTP",
    ]
    for number, answer in enumerate(answers):
        yield f"answer{number}", b"http://photos.example.org/a.jpg\0" + PUBLIC + b"\0" + answer
    for number, data in enumerate([b"image/png;base64,aW1hZ2U=", b",a%20b%zz", b";base64,@@", b"x"]):
        yield f"data{number}", b"data:" + data
    yield "scheme", b"gopher://x/"


def sources() -> Iterator[tuple[str, bytes]]:
    """(name, file): archives, tables and lists, in the ways that `data/` reads them."""
    members = {"a/1.png": b"image", "1.cls": b"3", "b/2.png": b"image" * 9, "b/2.json": b'{"label": 1}'}
    long = {"folder/" * 40 + name: content for name, content in members.items()}
    bytes_, names = [b"image", b"image2"], {"info": {"features": {"label": {"names": ["a", "b"]}}}}
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        yield "a.tar", tar(top / "t", members).read_bytes()[:6144]
        yield "b.tar", tar(top / "t", long, format=tarfile.PAX_FORMAT).read_bytes()
        yield "gnu.tar", tar(top / "t", long, format=tarfile.GNU_FORMAT).read_bytes()
        for suffix, way in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)):
            yield f"a.tar.{suffix}", tar(top / "t", members, way).read_bytes()
        yield "a.zip", zipped(top / "z", members).read_bytes()
        structs = [{"bytes": b, "path": "1.png"} for b in bytes_]
        for name, columns in (
            ("a", {"image": structs, "label": [0, 1]}),
            ("b", {"jpg": bytes_, "name": ["x", "y"], "wnid": ["n1", "n2"]}),
            ("c", {"path": ["x.png", "y.png"], "label": [[1, 2], [3]]}),
        ):
            yield f"{name}.parquet", table(top / "p", columns, names).read_bytes()
    yield "a.csv", b'image,label\nx.png,a\n"y, z.png",b\n'
    yield "a.tsv", "path\tclass\nx.png\té\n".encode("utf-16")
    yield "a.jsonl", b'{"image": "x.png", "label": 1}\n{"image": "y.png", "label": [1, 2]}\n'
    yield "a.txt", b"\xef\xbb\xbfx.png\r\nfolder/y.png\n"


def data() -> Iterator[tuple[str, bytes]]:
    """`sources`, each with its suffix in the first line."""
    for name, content in sources():
        yield name, name.partition(".")[2].encode() + b"\n" + content


SEEDS = {"image": images, "uri": uris, "data": data}


def write(kind: str, folder: Path) -> int:
    """Write the corpus of ``kind`` into a folder; return how many files it has."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, data in SEEDS[kind]():
        (folder / name).write_bytes(data)
        count += 1
    return count


def arguments(kind: str, argv: Sequence[str]) -> list[str]:
    """libFuzzer's: those that were given, after ours; with a corpus of seeds if no folder was named.

    The first folder named is the one that grows; the seeds are read beside it.
    """
    seeds = tempfile.mkdtemp(prefix=f"fuzz-{kind}-")
    write(kind, Path(seeds))
    length = 2**14 if kind == "data" else 2**12
    ours = [f"-max_len={length}", "-timeout=20", "-rss_limit_mb=2048", f"-dict={FOLDER / kind}.dict"]
    grown = [argument for argument in argv[1:] if not argument.startswith("-")] or [
        tempfile.mkdtemp(prefix="fuzz-new-")
    ]
    return [argv[0], *ours, *(a for a in argv[1:] if a.startswith("-")), *grown, seeds]


if __name__ == "__main__":
    for kind in SEEDS:
        print(kind, write(kind, Path(sys.argv[1]) / kind))
