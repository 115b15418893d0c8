"""Contents with random access: every part is the part of the whole."""

import gzip
import hashlib
import io
import random
import tarfile

import pytest

from tinkex.server.files.content import (
    BytesContent,
    FileContent,
    GzipContent,
    JoinedContent,
    checksum,
    tar_content,
)

FILES = {
    "a.bin": bytes(range(256)) * 700,  # more than two stored blocks
    "empty": b"",
    "one": b"x",
    "n" * 150: b"a name too long for the plain header",
}


def archive(files=FILES, modified=1_700_000_000):
    tar = tar_content({name: BytesContent(data) for name, data in files.items()}, modified=modified)
    return GzipContent(tar, checksum(tar))


def test_archive_is_one_that_everybody_reads():
    packed = archive()
    whole = packed.read(0, packed.size)
    assert len(whole) == packed.size
    with tarfile.open(fileobj=io.BytesIO(whole), mode="r:gz") as tar:
        assert tar.getnames() == list(FILES)
        assert {m.name: tar.extractfile(m).read() for m in tar.getmembers()} == FILES
        assert {member.mtime for member in tar.getmembers()} == {1_700_000_000}
    assert gzip.decompress(whole)[:6] == b"a.bin\0"


def test_equal_files_give_equal_bytes_and_another_byte_another_archive():
    one, two = archive(), archive()
    assert one.read(0, one.size) == two.read(0, two.size)
    other = archive({**FILES, "one": b"y"})
    assert (
        hashlib.sha256(other.read(0, other.size)).digest()
        != hashlib.sha256(one.read(0, one.size)).digest()
    )


def test_every_part_of_an_archive_is_that_part_of_the_whole():
    packed = archive()
    whole = packed.read(0, packed.size)
    rng = random.Random(3)
    starts = [0, 9, 10, 14, 15, 65_549, 65_550, 65_555, packed.size - 9, packed.size - 1]
    starts += [rng.randrange(packed.size) for _ in range(200)]
    for start in starts:
        for length in (1, 7, 70_000):
            assert packed.read(start, length) == whole[start : start + length], (start, length)
    assert packed.read(packed.size, 10) == b""


def test_archive_of_nothing_is_read_too():
    packed = GzipContent(BytesContent(b""), 0)
    assert gzip.decompress(packed.read(0, packed.size)) == b""


def test_joined_parts_are_read_across_their_borders():
    joined = JoinedContent([BytesContent(part) for part in (b"ab", b"", b"c", b"defg")])
    assert joined.size == 7
    assert joined.read(0, 7) == b"abcdefg"
    assert joined.read(1, 3) == b"bcd"
    assert joined.read(5, 100) == b"fg"


def test_deleted_file_is_read_to_its_end_by_who_holds_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abcdef")
    content = FileContent(path)
    path.unlink()
    assert content.read(2, 100) == b"cdef"
    content.close()
    with pytest.raises(FileNotFoundError):
        FileContent(path)


def test_link_in_the_place_of_a_file_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "file").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError):
        FileContent(tmp_path / "file")
