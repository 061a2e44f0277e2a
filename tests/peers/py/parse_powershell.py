"""Parses a PowerShell script, and fails with the places where it is none: parse_powershell.py SCRIPT."""

import sys

import tree_sitter
import tree_sitter_powershell

with open(sys.argv[1], "rb") as file:
    script = file.read()
tree = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language())).parse(script)


def faults(node):
    if node.type == "ERROR" or node.is_missing:
        yield node
    for child in node.children:
        yield from faults(child)


sys.exit("\n".join(f"line {node.start_point.row + 1}: {node.type}" for node in faults(tree.root_node)) or 0)
