"""
What FFmpeg may use to open a clip: containers, protocols and decoders, with the reason for each group.

A clip can come from a stranger, and FFmpeg has hundreds of demuxers (readers of containers) and decoders. Some demuxers
open other files, addresses or devices; many are rarely used and rarely tested. A file of a container that is not listed
here is refused before its demuxer reads it.
"""

import contextlib
import functools
import re
from typing import BinaryIO

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

# FFmpeg's names of the containers that are read. Their demuxers open nothing but the file itself.
CONTAINERS = ",".join(
    (
        # What phones, sites and editors write; `mov` is mp4, 3gp and m4v too. Such a file can refer to media in another
        # one, which FFmpeg does not open unless it is told to.
        "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,ivf",
        "gif,apng",  # animations
        "mpegvideo,h264,hevc",  # streams without a container
        "mxf,dv,nut,yuv4mpegpipe",  # cameras and editing
        "mp3,aac,flac,wav",  # sound alone, so that the message for a song says that there is no video in it
    )
)
# Not listed, and thus refused:
# - playlists and descriptions of sessions (hls, dash, concat, sdp, rtsp): they make FFmpeg open the files of this
#   computer, and the addresses of its network, that they name;
# - pictures and sequences of pictures (image2, png_pipe, ...): they are no clips, and image2 opens files by a pattern;
# - devices and filters (x11grab, v4l2, alsa, lavfi): FFmpeg takes one only by its name, and no name is given;
# - subtitles and, beyond the four above, sound;
# - containers of old games and players (Bink, Smacker, RealMedia, ...): hardly anyone has such clips.

# How files of some of these begin, so that a message can name them.
_OTHER_CONTAINERS = {
    rb"RIFF....WEBP": "WebP",
    rb"\.RMF": "RealMedia",
    rb"[FCZ]WS[\x01-\x40]": "Flash (SWF)",
    rb"BIK|KB2": "Bink",
    rb"\s*#EXTM3U": "a playlist (HLS)",
    rb"ffconcat": "a playlist (ffconcat)",
    rb"\s*<\?xml[^>]*>\s*<MPD": "a playlist (DASH)",
    rb"\xb7\xd8\x00\x20\x37\x49\xda\x11": "WTV",
    rb"SMK[24]": "Smacker",
    rb"FORM": "IFF",
}


def other_container(media: str | BinaryIO) -> str | None:
    """The name of a container that is not read, by the first bytes of a path's file or of a seekable stream."""
    if isinstance(media, str):
        with open(media, "rb") as file:
            start = file.read(256)
    else:
        media.seek(0)
        start = media.read(256)
    return next((name for begin, name in _OTHER_CONTAINERS.items() if re.match(begin, start, re.DOTALL)), None)


@functools.cache
def _video_decoders() -> str:
    names = []
    for name in av.codecs_available:
        with contextlib.suppress(ValueError):  # an encoder
            if av.Codec(name, "r").type == "video":
                names.append(name)
    return ",".join(sorted(names))


def open_limits() -> dict[str, str]:
    """
    Options of FFmpeg for a container that is to be read.

    The only protocol is `file`: nothing is fetched, whatever a file says. The only decoders are those of video: FFmpeg
    would otherwise decode the beginning of sound and subtitles, to find out what a file holds. All decoders of video
    are allowed: a list of some would refuse clips that people have, since AVI, mkv and mov hold codecs of thirty years.
    """
    return {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", "codec_whitelist": _video_decoders()}


__all__ = ["CONTAINERS", "open_limits", "other_container"]
