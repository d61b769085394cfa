"""Pictures that cost a decoder far more than their bytes and pixels say: small, well-formed, and slow.

Each is within the limit of bytes. What they cost is measured by `python -m benchmarks.pictures`. What can be
made of any format comes from the table of formats; by hand is what repeats the structures of one, in a file a
container here.
"""

from __future__ import annotations

from collections.abc import Callable

from reliability.costly import any_format, bmp, gif, isobmff, jpeg, png, profiles, tiff, webp

# Name -> what makes the file.
COSTLY: dict[str, Callable[[], bytes]] = {
    **any_format.FILES,
    **jpeg.FILES,
    **png.FILES,
    **webp.FILES,
    **gif.FILES,
    **bmp.FILES,
    **tiff.FILES,
    **isobmff.FILES,
    **profiles.FILES,
}
