"""The first and last bytes of files that libsndfile reads less of than there is, on bytes written by hand."""

from io import BytesIO
from struct import pack

import pytest

from sft_hf.audio.containers import endless_mp3, ends_in_a_page, open_ended_wav, other_format, skip_to_mp3

FORMAT = b"fmt " + pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
ENDLESS = b"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x20ftypM4A ", "MP4 or M4A"),
        (b"\x1aE\xdf\xa3\x01\0\0\0\0\0\0\x1f", "WebM or Matroska"),
        (b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa", "WMA"),
        (b"#!AMR\n", "AMR"),
        (b"MAC \x96\x0f", "APE"),
        (b"\xff\xf1L@", "AAC"),
        (b"\xff\xf9L@", "AAC"),
        (b"\xff\xfb\x90\x64", None),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"fLaC", None),
        (b"OggS", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_formats_that_libsndfile_does_not_read(head, name):
    assert other_format(BytesIO(head)) == name


def wav(riff_size: int, data_size: int, sound: bytes, *chunks: bytes) -> bytes:
    return (
        b"RIFF" + pack("<I", riff_size) + b"WAVE" + b"".join(chunks) + FORMAT + b"data" + pack("<I", data_size) + sound
    )


@pytest.mark.parametrize("riff_size", [0, 36, 0xFFFFFFFF])
@pytest.mark.parametrize("chunks", [(), (b"LIST" + pack("<I", 3) + b"abc\0",)])
def test_a_wav_that_was_never_closed_is_open_at_its_end(riff_size, chunks):
    """An odd chunk has a byte behind it that it does not count."""
    data = wav(riff_size, 0, b"sounds", *chunks)
    assert open_ended_wav(BytesIO(data)) == data[: -6 - 4] + ENDLESS + b"sounds"


@pytest.mark.parametrize(
    "data",
    [
        wav(36 + 6, 6, b"sounds"),  # says its length
        wav(0, 0, b""),  # nothing follows
        wav(36, 0, b""),
        wav(36 + 12, 0, b"LIST" + pack("<I", 4) + b"abcd"),  # closed: what follows is no sound
        wav(0, 0xFFFFFFFF, b"sounds"),  # libsndfile reads that to the end
        b"RIFF\0\0\0\0WAVE",
        b"RIFF\0\0\0\0AVI LIST",
        b"OggS",
        b"",
    ],
)
def test_other_files_are_left_as_they_are(data):
    assert open_ended_wav(BytesIO(data)) is None


def page(segments: bytes, *, start: bytes = b"OggS") -> bytes:
    return start + bytes(22) + bytes([len(segments)]) + segments + bytes(sum(segments))


@pytest.mark.parametrize("missing", [1, 20, 29, 34])
def test_an_ogg_file_that_lacks_the_end_of_its_last_page(missing):
    """4 + 22 + 1 bytes, a byte for the length of each segment, and the segments: 34 bytes."""
    assert len(page(b"\2\3")) == 34
    assert not ends_in_a_page(BytesIO(page(b"\5") + page(b"\2\3")))
    assert not ends_in_a_page(BytesIO(page(b"\5") + page(b"\2\3") + b"junk"))
    cut = (page(b"\5") + page(b"\2\3"))[:-missing]
    assert ends_in_a_page(BytesIO(cut)) == (missing < 34)
    assert ends_in_a_page(BytesIO(page(b"\xff" * 255) * 3 + page(b"\2\3")[:-1]))
    assert not ends_in_a_page(BytesIO(page(b"\5", start=b"OggX")[:-1]))


# MPEG 1 layer III, 128 kbit/s, 44.1 kHz, joint stereo; of MPEG 2, 64 kbit/s, 16 kHz, mono
FIRST, SECOND = b"\xff\xfb\x90\x64", b"\xff\xf3\x88\xc4"


@pytest.mark.parametrize("tags", [b"", b"ID3\4\0\0\0\0\1\2" + bytes(130), b"ID3\4\0\x10\0\0\0\3" + bytes(3 + 10)])
def test_the_first_frame_of_an_mp3_is_behind_its_tags(tags):
    """The size is in 7 bits of each of 4 bytes, and does not count 10 bytes at each end."""
    file = BytesIO(tags + FIRST + bytes(400))
    assert skip_to_mp3(file)
    assert file.tell() == len(tags)


@pytest.mark.parametrize(
    "head",
    [
        b"\xff\xfd\x90\x64",  # layer II
        b"\xff\xf1\x90\x64",  # AAC
        b"\xff\xea\x90\x64",  # no version
        b"\xff\xfb\x9c\x64",  # no sampling rate
        b"fLaC\0\0\0\x22",
        b"\xff\xfb",
        b"ID3\4\0\0",
        b"",
    ],
)
def test_other_files_have_no_such_frame(head):
    assert not skip_to_mp3(BytesIO(head + (bytes(400) if len(head) == 4 else b"")))


def at_its_frame(data: bytes) -> BytesIO:
    file = BytesIO(data)
    assert skip_to_mp3(file)
    return file


@pytest.mark.parametrize(
    ("header", "copied", "size", "place"),
    [(FIRST, b"\xff\xfb\x90\x64", 417, 4 + 32), (SECOND, b"\xff\xf3\x98\xc4", 360, 4 + 9)],
)
def test_an_mp3_without_a_length_gets_a_frame_that_says_a_large_one(header, copied, size, place):
    """144 * 128000 / 44100 = 417 bytes, and for MPEG 2 72 * 80000 / 16000 = 360; 32 and 9 bytes of side information."""
    mended = endless_mp3(at_its_frame(b"ID3\4\0\0\0\0\0\0" + header + bytes(400)))
    assert mended[:4] == copied
    assert mended[place : place + 8] == b"Xing\0\0\0\1"
    assert int.from_bytes(mended[place + 8 : place + 12], "big") * 576 > 1 << 33
    assert mended[size:] == header + bytes(400), "without the tags"


def test_a_checksum_and_padding_are_not_copied():
    assert endless_mp3(at_its_frame(b"\xff\xfa\x92\x64" + bytes(400)))[:4] == FIRST


@pytest.mark.parametrize("name", [b"Xing", b"Info", b"VBRI"])
def test_an_mp3_with_a_length_is_left_as_it_is(name):
    assert endless_mp3(at_its_frame(FIRST + bytes(32) + name + bytes(400))) is None
