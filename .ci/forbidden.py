"""Find what must not be committed: secrets, paths of one machine, marks of a conflict.

.ci/forbidden.py           # every tracked file
.ci/forbidden.py FILE…     # these
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

# Written so that no pattern finds itself.
FORBIDDEN = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n",
    "an API key": r"\b(sk-(proj-)?[A-Za-z0-9_-]{32,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36})\b",
    "an access token": r"\beyJ[\w-]{20,}\.eyJ[\w-]{20,}\.[\w-]{20,}",
    "a password in an address": r"\b(postgresql|rediss?)://\w*:[A-Za-z0-9_-]{24,}@",
    "a path of one machine": r"(?<![\w.])/(home/(?!(app|jovyan|ada)\b)[a-z]\w*|ro{2}t|Users/\w+)/",
    "the mark of a conflict": r"(?m)^(<{7}|>{7}) ",
}


def found_in(text: str) -> Iterator[tuple[int, str, str]]:
    "Yield the line, the kind and the beginning of each match."
    for kind, pattern in FORBIDDEN.items():
        for match in re.finditer(pattern, text):
            yield text.count("\n", 0, match.start()) + 1, kind, match.group()[:12].strip()


def main(names: Iterable[str]) -> int:
    "Print each find; return 1 when there is one."
    names = list(names)
    if not names:
        listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True)  # noqa: S607
        names = [name for name in listed.stdout.split("\0") if name]
    finds = 0
    for path in map(Path, names):
        if not path.is_file():
            continue
        for line, kind, start in found_in(path.read_text(encoding="utf-8", errors="ignore")):
            print(f"{path}:{line}: {kind} ({start}…)", file=sys.stderr)
            finds += 1
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
