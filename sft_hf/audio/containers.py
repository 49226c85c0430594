"""What the first and last bytes of a sound file say that libsndfile does not: other formats, lost ends, lengths that nobody wrote.

    with open("call.wav", "rb") as file:               # written to a pipe: its header says that there is no sound
        open_ended_wav(file)                           # its bytes, with a header that says as much as can be
    with open("podcast.mp3", "rb") as file:
        skip_to_mp3(file) and endless_mp3(file)        # its bytes, where its own header says no length

All of them take an open file, at whatever place it stands.
"""

from io import SEEK_CUR, SEEK_END
from typing import BinaryIO

# What the formats that libsndfile does not read begin with, after so many bytes.
OTHER_FORMATS = (
    (4, b"ftyp", "MP4 or M4A"),
    (0, b"\x1aE\xdf\xa3", "WebM or Matroska"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "WMA"),
    (0, b"#!AMR", "AMR"),
    (0, b"MAC ", "APE"),
)
OGG_PAGE = 65_307  # bytes that a page has at most
MPEG_VERSIONS = {3: 0, 2: 1, 0: 2}  # the bits of MPEG 1, 2 and 2.5 -> how often their sampling rates are halved
MP3_LENGTHS = (b"Xing", b"Info", b"VBRI")  # in the first frame of an mp3 whose length is known
ENDLESS = 1 << 33  # frames, a week at 14 kHz; endless_mp3 says more, and so does libsndfile of flac without a length


def other_format(file: BinaryIO) -> str | None:
    """The name of a format that libsndfile does not read, None for those that it may."""
    file.seek(0)
    head = file.read(12)
    for offset, beginning, kind in OTHER_FORMATS:
        if head[offset:].startswith(beginning):
            return kind
    return "AAC" if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 else None


def open_ended_wav(file: BinaryIO) -> bytes | None:
    """A wav that was never closed, whose header says no length, with the largest one; None for any other file.

    A closed one of length zero says how long the file is.
    """
    file.seek(0)
    riff = file.read(12)
    if not (riff.startswith(b"RIFF") and riff.endswith(b"WAVE")):
        return None
    while len(chunk := file.read(8)) == 8 and not chunk.startswith(b"data"):
        length = int.from_bytes(chunk[4:], "little")
        file.seek(length + length % 2, SEEK_CUR)
    position = file.tell()
    size = file.seek(0, SEEK_END)
    if chunk != b"data\0\0\0\0" or size in (position, int.from_bytes(riff[4:8], "little") + 8):
        return None
    file.seek(0)
    data = file.read()
    return data[: position - 4] + b"\xff\xff\xff\xff" + data[position:]


def ends_in_a_page(file: BinaryIO) -> bool:
    """Whether an ogg file lacks the end of its last page; libsndfile then reads it without that page.

    https://www.rfc-editor.org/rfc/rfc3533#section-6
    """
    file.seek(0)
    if file.read(4) != b"OggS":
        return False
    file.seek(max(file.seek(0, SEEK_END) - OGG_PAGE, 0))
    tail = file.read()
    page = tail[max(tail.rfind(b"OggS"), 0) :]
    header = 27 + page[26] if len(page) > 26 else 27  # as many bytes and segments, whose lengths are the last of them
    return len(page) < header + sum(page[27:header])


def skip_to_mp3(file: BinaryIO) -> bool:
    """Whether a file is one of MPEG frames of layer III; the first one is then next to be read."""
    position = 0
    file.seek(position)
    while (head := file.read(10)).startswith(b"ID3") and len(head) == 10:
        size = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        position += 10 + size + (10 if head[5] & 0x10 else 0)
        file.seek(position)
    file.seek(position)
    is_frame = len(head) == 10 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2
    return is_frame and head[1] >> 3 & 3 in MPEG_VERSIONS and head[2] >> 2 & 3 != 3


def endless_mp3(file: BinaryIO) -> bytes | None:
    """An mp3 that says no length, behind a frame with a Xing header that says a very large one; None where one says the length.

    http://www.mp3-tech.org/programmer/frame_header.html
    """
    start = file.tell()
    head = file.read(200)
    if any(name in head for name in MP3_LENGTHS):
        return None
    version = MPEG_VERSIONS[head[1] >> 3 & 3]
    is_mono = head[3] >> 6 == 3
    # The same but for a bit rate that leaves room, without padding and checksum.
    header = bytes([head[0], head[1] | 1, 0x90 | head[2] & 0x0C, head[3]])
    rate = (44100, 48000, 32000)[head[2] >> 2 & 3] >> version
    size = 72 * 80_000 // rate if version else 144 * 128_000 // rate
    side_information = (9 if is_mono else 17) if version else (17 if is_mono else 32)
    frame = header + bytes(side_information) + b"Xing\0\0\0\1" + (ENDLESS >> 9).to_bytes(4, "big")
    file.seek(start)
    return frame.ljust(size, b"\0") + file.read()
