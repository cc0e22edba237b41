"""A plugin file with a family whose text encoder sees references, in its own view; it logs what it encodes."""

SOURCE = '''
import hashlib
import json
from typing import ClassVar

import numpy as np
import torch

from difftrain import Options, hookimpl
from difftrain.testing.tiny_family import TinyEditFlavour, TinyFamily, TinyTextEncoder


def log(**facts):
    with open("encoded.jsonl", "a") as file:
        file.write(json.dumps(facts) + "\\n")


class SeeingText(TinyTextEncoder):
    def encode(self, captions, references=None):
        log(call=len(captions))
        embeds = []
        for number, text in enumerate(super().encode(captions)):
            seen = references[number] if references is not None else []
            log(
                caption=captions[number],
                seen=[[*image.size, hashlib.sha256(image.tobytes()).hexdigest()] for image in seen],
            )
            level = sum(float(np.asarray(image).mean()) for image in seen)
            embeds.append({"words": text["words"] + level / 255})
        return embeds


class Seeing(TinyFamily):
    """Sees references, each edge divided by seeing_divisor."""

    name: ClassVar[str] = "seeing"
    text_sees_references: ClassVar[bool] = True

    seeing_divisor: int = 2
    """Divisor for the edges of the encoded reference."""

    def text_view(self, size, flavour):
        return size[0] // self.seeing_divisor, size[1] // self.seeing_divisor

    def text_bytes(self, location, flavour, value_bytes, views=()):
        return 8 * 4 + sum(16 * width * height for width, height in views)

    def load_text_encoder(self, location, flavour, device, dtype):
        log(load=True)
        return SeeingText()


class SeeingEdit(TinyEditFlavour):
    """Draws with only the first reference."""

    family: ClassVar[str] = "seeing"
    hub_id: ClassVar[str] = "nobody/seeing"
    pipeline_references: ClassVar[int | None] = 1


@hookimpl
def difftrain_model_families():
    return (Seeing,)


@hookimpl
def difftrain_model_flavours():
    return (SeeingEdit,)
'''
