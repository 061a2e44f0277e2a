"""Reads a VHDX, with what it gets from its parents, and writes the disk: read_vhdx.py VHDX RAW."""

import pathlib
import sys
import uuid

from dissect.hypervisor.disk.vhdx import VHDX

disk = VHDX(pathlib.Path(sys.argv[1]))
with open(sys.argv[2], "wb") as raw:
    for at in range(0, disk.size, 1 << 20):
        disk.seek(at)
        raw.write(disk.read(min(1 << 20, disk.size - at)))

parents = 0
child = disk
while child.parent is not None:
    linkage = child.parent_locator.entries["parent_linkage"]
    assert linkage == "{%s}" % uuid.UUID(bytes_le=child.parent.header.data_write_guid), linkage
    assert child.id == child.parent.id, "the disk's identity"
    child = child.parent
    parents += 1
print(parents)
