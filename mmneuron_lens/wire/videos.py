"""Videos: known by their first bytes or their name, and refused, since only pictures are read."""

from __future__ import annotations

from typing import BinaryIO

ENDINGS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".mts")
"""Of names of videos: what is none that Pillow reads is called one."""

STILL = (b"avif", b"avis", b"mif1", b"msf1", b"miaf", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"crx ")
"""Brands of ISO base media files that are pictures, or sequences of them."""

STARTS = (
    *(b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"FLV\x01", b"OggS"),
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
)
"""Matroska and WebM, MPEG streams, FLV, Ogg, ASF and WMV."""


def refuse_video(file: BinaryIO, name: str) -> None:
    """Raises `ValueError` for a file that begins as a video does."""
    start = file.read(16)
    file.seek(0)
    if is_video(start):
        raise ValueError(said_of_a_video(name))


def said_of_a_video(name: str) -> str:
    return f"{name} is a video; mmneuron reads pictures: save the frames that are asked about as images."


def is_video(start: bytes) -> bool:
    """Whether a file that starts with these 16 bytes is a video."""
    if start[4:8] == b"ftyp":
        return start[8:12] not in STILL
    return (
        start.startswith(STARTS) or (start[:4] == b"RIFF" and start[8:11] == b"AVI") or start[4:8] in (b"moov", b"mdat")
    )
