"""Writes unicode_tables.c, from the newest Unicode data at hand:

    pip install unicodedata2 && python csrc/unicode_tables.py

Without that package they are those of the interpreter.
"""

from collections.abc import Iterator
from pathlib import Path

try:
    import unicodedata2 as unicodedata
except ImportError:
    import unicodedata

CLASSES = {"L": "LETTER", "N": "NUMBER", "Z": "SPACE"}  # by the first letter of the general category
CONTROL_SPACES = {*range(0x09, 0x0E), 0x85}  # white space by White_Space alone; all the rest of it is category Z

HEAD = """\
/* unicode_tables.c: written by unicode_tables.py, from Unicode {version}. */
#include "unicode.h"

#define OTHER L2C_UNICODE_OTHER
#define LETTER L2C_UNICODE_LETTER
#define NUMBER L2C_UNICODE_NUMBER
#define SPACE L2C_UNICODE_SPACE

// clang-format off
const uint32_t l2c_unicode_ranges[] = {{
"""
TAIL = """\
}};
// clang-format on
const size_t l2c_unicode_range_count = {count};
"""


def unicode_class(point: int) -> str:
    if point in CONTROL_SPACES:
        return "SPACE"
    return CLASSES.get(unicodedata.category(chr(point))[0], "OTHER")


def ranges() -> Iterator[tuple[int, str]]:
    """(first code point, class) of each run of one class."""
    before = None
    for point in range(0x110000):
        found = unicode_class(point)
        if found != before:
            yield point, found
        before = found


def main() -> None:
    entries = [f"0x{point:05X} << 2 | {name}," for point, name in ranges()]
    lines = ["    " + " ".join(entries[at : at + 5]) for at in range(0, len(entries), 5)]
    text = HEAD.format(version=unicodedata.unidata_version) + "\n".join(lines) + "\n" + TAIL.format(count=len(entries))
    Path(__file__).with_name("unicode_tables.c").write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
