"""The type of a file, from its name alone: an image, a caption, a video, a system file. No IO."""

from __future__ import annotations

IMAGE_FORMATS = {
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"), "JPEG"),
    ".webp": "WEBP",
    ".gif": "GIF",
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "JPEG2000"),
    ".tga": "TGA",
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    ".qoi": "QOI",
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"),
    ".jxl": "JXL",
}
"""Formats that users have and Pillow reads, some with an extra package; in Pillow's names."""

DECODER_PACKAGES = {"HEIF": "pillow-heif", "JXL": "pillow-jxl-plugin"}
"""Packages that add a format to Pillow."""

_UNREAD = (
    # photographs as cameras store them
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl "
    ".sr2 .srf .srw .x3f "
    # drawings and layers
    ".afphoto .ai .cdr .clip .emf .eps .kra .pdf .psb .psd .svg .svgz .wmf .xcf "
    # high dynamic range, textures, icons
    ".cur .dds .exr .hdr .icns .ico .jxr .ktx .ktx2 .pcx .pfm .sgi .wdp .xbm .xpm"
)
UNREAD_IMAGES = frozenset(_UNREAD.split())
"""Formats that users consider images, but that are not read."""

VIDEOS = frozenset(
    {
        ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
        ".vob", ".webm", ".wmv",
    }
)  # fmt: skip

CAPTION = ".txt"
DOCUMENTS = frozenset({"readme", "license", "licence", "notice", "changelog", "requirements"})
"""Stems of text files that are surely not captions."""

SYSTEM_NAMES = frozenset(
    {
        "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "__macosx", "__pycache__", "$recycle.bin",
        "desktop.ini", "ehthumbs.db", "lost+found", "recycler", "system volume information", "thumbs.db",
    }
)  # fmt: skip
"""Names that systems and storage devices put into folders, in lower case; hidden names are skipped too."""


def suffix_of(name: str) -> str:
    """Return the suffix in lower case, with its dot; empty for a name without one."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > name.rfind("/") + 1 else ""


def is_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES
