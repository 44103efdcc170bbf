"""Code blocks of the READMEs and of the pages in docs/."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Block(NamedTuple):
    language: str
    code: str
    run_by_ci: str | None  # under which name


def blocks(page: str) -> list[Block]:
    """All code blocks of a page, whose path starts at the repository's root."""
    block = r"(?:<!-- CI runs this as (\w+) -->\n)?^```([\w ]*)\n(.*?)^```$"
    found = re.findall(block, (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    return [Block(language, code, mark or None) for mark, language, code in found]


def code_of(page: str, language: str) -> list[str]:
    return [block.code for block in blocks(page) if block.language == language]
