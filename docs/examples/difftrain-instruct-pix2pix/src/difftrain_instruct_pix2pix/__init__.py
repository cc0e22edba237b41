"""InstructPix2Pix for difftrain: a U-Net that edits an image by an instruction. Start with `family.py`."""
