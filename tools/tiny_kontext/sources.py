"""The photographs that the small model learns from: Debian package, file, subject, licence.

Licences are those named in each package's `debian/copyright` (or the wallpaper's own `metadata.json`).
Nothing here is committed or shipped: `data.py` fetches the packages and reduces the images.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKGROUNDS = "usr/share/backgrounds"
WALLPAPERS = "usr/share/wallpapers"
STAMPS = "usr/share/tuxpaint/stamps"


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """One image of a Debian package."""

    package: str
    path: str
    """Inside the package."""
    subject: str
    """Fills "a photograph of ..."."""
    licence: str


def _group(package: str, folder: str, licence: str, files: dict[str, str]) -> list[Photograph]:
    return [
        Photograph(package=package, path=f"{folder}/{name}", subject=subject, licence=licence)
        for name, subject in files.items()
    ]


PHOTOGRAPHS: tuple[Photograph, ...] = (
    *_group(
        "lomiri-wallpapers-16.04",
        BACKGROUNDS,
        "CC-BY-4.0",
        {
            "aitzgorri_by_Aitzol_Berasategi.jpg": "mountains",
            "friends_by_Aitzol_Berasategi.jpg": "people on a path",
            "life_by_Aitzol_Berasategi.jpg": "a forest stream",
            "picosdeeuropa_by_Aitzol_Berasategi.jpg": "mountains",
            "Picture_0B_by_freespace.jpg": "a red light",
            "Picture_1A_by_freespace.jpg": "brushes and paint",
            "sunset_by_Aitzol_Berasategi.jpg": "a sunset",
            "Wine_by_Jakkub_Mede.jpg": "wine and wood",
        },
    ),
    *_group(
        "lomiri-wallpapers-16.04",
        BACKGROUNDS,
        "CC-BY-SA-4.0",
        {
            "Bridge_by_Sander_Klootwijk.jpg": "a bridge",
            "Dragonfly_by_Bolly.jpg": "leaves and branches",
            "free_by_Peter_Nerlich.jpg": "a bird",
            "greentock_by_Peter_Nerlich.jpg": "a clock",
            "analogpattern_by_Peter_Nerlich.jpg": "a pattern",
        },
    ),
    *_group(
        "lomiri-wallpapers-16.04",
        BACKGROUNDS,
        "CC0-1.0",
        {"seeding_by_Clements_Engelhardt.jpg": "dandelions"},
    ),
    *_group(
        "lomiri-wallpapers-20.04",
        BACKGROUNDS,
        "CC-BY-SA-3.0",
        {"Fossa_by_Jasper_Roks.jpg": "an animal", "Kleiber_by_Lukas_Baubkus.jpg": "a bird"},
    ),
    *_group(
        "mate-backgrounds",
        f"{BACKGROUNDS}/mate/nature",
        "GPL-2+",
        {
            "Garden.jpg": "flowers",
            "Dune.jpg": "a dune",
            "Wood.jpg": "wood",
            "Aqua.jpg": "a drop of water",
            "TwoWings.jpg": "a butterfly",
            "Storm.jpg": "a storm",
            "GreenMeadow.jpg": "grass",
            "RainDrops.jpg": "drops on a leaf",
            "Blinds.jpg": "a green leaf",
            "FreshFlower.jpg": "a flower",
            "LadyBird.jpg": "small blue flowers",
            "YellowFlower.jpg": "a yellow flower",
        },
    ),
    *_group(
        "palapeli-data",
        "usr/share/palapeli/collection",
        "GPL-2+",
        {
            "cincinnati-bridge.jpg": "a bridge at night",
            "european-honey-bee.jpg": "a bee on a flower",
            "panther-chameleon-female.jpg": "a chameleon",
            "castle-maintenon.jpg": "a castle",
            "citrus-fruits.jpg": "fruit",
        },
    ),
    *_group(
        "plasma-workspace-wallpapers",
        WALLPAPERS,
        "LGPL-3",
        {
            "FallenLeaf/contents/images/2560x1600.jpg": "a red leaf",
            "Path/contents/images/2560x1600.jpg": "a forest",
            "summer_1am/contents/images/2560x1600.jpg": "a lake",
            "EveningGlow/contents/images/2560x1600.jpg": "boats",
            "Grey/contents/images/2560x1600.jpg": "a building",
            "Kite/contents/images/2560x1600.jpg": "the sky",
            "ColorfulCups/contents/images/2560x1600.jpg": "cups",
            "OneStandsOut/contents/images/2560x1600.jpg": "plants",
            "ColdRipple/contents/images/2560x1600.jpg": "a pier",
            "BytheWater/contents/images/2560x1600.jpg": "wood by the water",
            "Autumn/contents/images/2560x1600.jpg": "a tree in autumn",
        },
    ),
    *_group(
        "plasma-workspace-wallpapers",
        WALLPAPERS,
        "CC-BY-SA-4.0",
        {"Volna/contents/images/5120x2880.jpg": "a beach"},
    ),
    *_group("ukui-wallpapers", BACKGROUNDS, "CC-BY-SA-3.0", {"string.jpg": "ribbons", "2004default.jpg": "ribbons"}),
)

STAMP_PACKAGE = "tuxpaint-stamps-default"
STAMP_LICENCE = "GPL-2"
STAMP_SUBJECTS: dict[str, str] = {
    "albino_peahen": "a white bird",
    "crowned_crane": "a bird",
    "helmeted_guineafowl": "a bird",
    "heron_great": "a bird",
    "pelican": "a bird",
    "lobster": "an animal",
    "mantis": "an insect",
    "otter": "an animal",
    "european-bear": "a bear",
    "gnu-baby": "an animal",
    "gnu-stand": "an animal",
    "indian_blac": "an animal",
    "lion-2": "a lion",
    "tiger_sumat": "a tiger",
    "capybara": "an animal",
    "Apricot_who": "fruit",
    "Cherry_Stel": "cherries",
    "Strawberry2": "a strawberry",
    "avocado": "fruit",
    "cherimoya": "fruit",
    "kiwi": "fruit",
    "orange_sevi": "fruit",
    "ginger": "ginger",
    "Lightbulb": "a light bulb",
    "cementmixer": "a machine",
    "fireman240a": "a person",
    "fire": "a fire",
    "anemone_red": "a red flower",
    "daffodil": "a yellow flower",
    "thyme": "a plant",
    "holm_oak": "a tree",
    "liberia-pal": "a palm tree",
    "rambutan": "fruit",
    "tree336": "a tree",
    "candle": "a candle",
    "Christmas_T": "a tree",
    "German_Chri": "a wooden figure",
    "Mince_Pie": "a pie",
    "Roast_turke": "food",
    "jackolanter": "a pumpkin",
    "5_jupiter": "a planet",
    "inukshuk-ph": "stones",
    "railroad_cr": "a sign",
    "dumper": "a machine",
    "firetruck": "a fire engine",
    "balloon360": "a balloon",
    "747": "an aeroplane",
    "garbagetruc": "a lorry",
    "green_korea": "a bus",
    "wheel_tract": "a wheel",
}
"""Start of the stamp's file name, and what it shows."""

PACKAGES: tuple[str, ...] = (*dict.fromkeys(photograph.package for photograph in PHOTOGRAPHS), STAMP_PACKAGE)


def licences() -> list[dict[str, object]]:
    """Return the data list that goes with the weights: package, licence, number of files."""
    counts: dict[tuple[str, str], int] = {}
    for photograph in PHOTOGRAPHS:
        key = (photograph.package, photograph.licence)
        counts[key] = counts.get(key, 0) + 1
    counts[(STAMP_PACKAGE, STAMP_LICENCE)] = len(STAMP_SUBJECTS)
    return [{"package": package, "licence": licence, "files": n} for (package, licence), n in counts.items()]
