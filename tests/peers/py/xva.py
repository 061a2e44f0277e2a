"""Reads an XVA with Python's own tar, checks its checksums, and prints what it found as one JSON object.

Usage: xva.py FILE
"""

import hashlib
import json
import sys
import tarfile

import xxhash

CHECKSUMS = {
    ".xxhash": lambda chunk: xxhash.xxh64(chunk).hexdigest().upper(),
    ".checksum": lambda chunk: hashlib.sha1(chunk).hexdigest(),
}


def main(path):
    disks, sizes, chunk = {}, {}, None
    with tarfile.open(path) as tar:
        names = [member.name for member in tar]
        metadata = tar.extractfile(names[0]).read().decode()
        for member in tar:
            if "/" not in member.name:
                continue
            body = tar.extractfile(member).read()
            stem, dot, suffix = member.name.partition(".")
            if dot:
                name, bytes_of_chunk = chunk
                assert name == stem, "the checksum of another chunk"
                assert CHECKSUMS[dot + suffix](bytes_of_chunk).encode() == body, "a wrong checksum: " + stem
                continue
            chunk = (member.name, body)
            disk, number = member.name.split("/")
            whole = disks.setdefault(disk, bytearray())
            whole.extend(bytes((int(number) << 20) - len(whole)) + body)
    disks = {disk: hashlib.sha256(whole).hexdigest() for disk, whole in disks.items()}
    print(json.dumps({"names": names, "metadata": metadata, "disks": disks}))


main(*sys.argv[1:])
