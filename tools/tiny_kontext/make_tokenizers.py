"""Writes both tokenizers, with a vocabulary made from the captions of training.

python make_tokenizers.py --output STATE/tokenizers
"""

from __future__ import annotations

import argparse
from pathlib import Path

from architecture import save_tokenizers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    save_tokenizers(parser.parse_args().output)


if __name__ == "__main__":
    main()
