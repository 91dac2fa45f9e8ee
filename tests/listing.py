"""Listings of folders, as pages show them."""


def paths(listing: str) -> list[str]:
    """The paths of an indented listing, those of folders with a slash at their end: 'a/', '  b.py  what it is' -> a/,
    a/b.py. What stands in brackets may be absent, and is left out with all that it holds."""
    found: list[str] = []
    above: list[tuple[int, str]] = []  # the folders that a line stands in, with their indents
    for line in filter(str.strip, listing.splitlines()):
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        while above and above[-1][0] >= indent:
            above.pop()
        path = "".join([*(folder for _, folder in above), name])
        if name.rstrip("]").endswith("/"):
            above.append((indent, name))
        if "[" not in path:
            found.append(path)
    return found
