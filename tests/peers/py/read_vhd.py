"""Reads a VHD by the footer at its end, and writes the disk: read_vhd.py VHD RAW."""

import sys

from dissect.hypervisor.disk.vhd import VHD

with open(sys.argv[1], "rb") as file, open(sys.argv[2], "wb") as raw:
    disk = VHD(file)
    for at in range(0, disk.size, 1 << 20):
        disk.seek(at)
        raw.write(disk.read(min(1 << 20, disk.size - at)))
