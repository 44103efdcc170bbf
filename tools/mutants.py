"""Defects to put in on purpose: small changes of single lines of C++ and Python, by regular expressions.

universalmutator was tried and is not used: its rules know neither types nor docstrings, and most of what they make of
these sources does not compile (``int64_t`` to ``int65_t``, ``break`` behind every line) or changes a text.
The formatters help: binary operators have a space on either side, and templates, pointers and references have not.
"""

import ast
import io
import re
import tokenize
from bisect import bisect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple


class Mutant(NamedTuple):
    file: str
    line: int
    operator: str
    old: str
    new: str


# What is left out, whole lines, and why.
EXCLUDED = {
    r"^constexpr int64_t k[A-Z]|kElementsPerTask|kCached|kPerLine = |\bleast\b|alignas": "sizes of blocks: speed only",
    r"announce|prefetch": "asks for memory early: speed only",
    r"multiple_of|do_not_specialize|_UNSPECIALIZED": "hints for the compiler: speed only",
    r"\"cuda\"|torch\.cuda|torch\.version|_CUDA_ARCH|pin_memory|non_blocking|[Nn]vidia": "runs with a GPU only",
}
_TOGETHER = "start and step are given together, which is checked: to ask for one is to ask for the other"
# What is made but not tried, by rule: where old and new are alike once this is taken out, no test can tell them apart.
HARMLESS = {
    r"(?<=if \()(?:start|step)(?=\))|(?<=!)(?:start|step)(?=\.has)|(?<=!at\.)(?:start|step)(?=;)": _TOGETHER,
    r"\b(?:start|step)(?= \?)": _TOGETHER,
    r"(?<=^Buffer<T> buffers\[)[45](?=\];)|(?<=^int64_t count = )\d(?=;)": "not used, or set before it is read",
    r"^finish_streams\(\);$|^;$": "orders memory between threads: what would go wrong is up to chance",
}
_FILLER = "\0"  # stands for what is no code: comments, texts, annotations

_ITEM = r"(?:not )?[!~]?(?:\w|\.|->|::|\[[^\[\]]*\]|\([^()]*\))+"
_TERM = rf"{_ITEM}(?: (?:[<>!=]=|<|>|is not|is|not in|in) {_ITEM})*"
_COMPARED = {"<": "<= >=", "<=": "< >", ">": ">= <=", ">=": "> <", "==": "!=", "!=": "=="}
_REPLACED = {"+": "-", "-": "+", "*": "+ /", "/": "*", "//": "*", "%": "*", "@": "*"}
_ASSIGNED = {"+=": "= -=", "-=": "= +=", "*=": "=", "/=": "= *=", "&=": "="}
_JOINED = {"&&": "||", "||": "&&", "and": "or", "or": "and", "&": "|", "|": "&"}
_NAMES = ("a b", "x y", "alpha beta", "start step", "rows columns", "average maximum", "batch time", "first last")
_OTHER_NAME = {one: other for pair in _NAMES for one, other in (pair.split(), pair.split()[::-1])}
_LARGEST = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum"}
_TRUTH = {"true": "false", "false": "true", "True": "False", "False": "True"}


def _one_of(words: dict[str, str]) -> str:
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))


def _constants(found: re.Match) -> list[str]:
    number, fraction = found[1], found[2] or ""
    if fraction:
        return [("1" if number == "0" else "0") + fraction]
    return {"0": ["1"], "1": ["0", "2"]}.get(number, [str(int(number) + 1), str(int(number) - 1)])


def _from(words: dict[str, str]):
    return lambda found: [found[0].replace(found[1], other) for other in words[found[1]].split()]


# By name: what is looked for in a line without its texts, and what may stand there instead.
OPERATORS = {
    "comparison": (rf"(?<= )({_one_of(_COMPARED)})(?= )", _from(_COMPARED)),
    "arithmetic": (rf"(?<= )({_one_of(_REPLACED)})(?= )", _from(_REPLACED)),
    "assignment": (rf"(?<= )({_one_of(_ASSIGNED)})(?= )", _from(_ASSIGNED)),
    "logic": (rf"(?<= )({_one_of(_JOINED)})(?= )", _from(_JOINED)),
    "term dropped": (rf"{_TERM} (?:&&|\|\||and|or) |{_ITEM} & ", lambda _: [""]),
    "last term dropped": (rf" (?:&&|\|\||and|or) {_TERM}| & {_ITEM}", lambda _: [""]),
    "negation dropped": (r"!(?=[\w(])|~(?=[\w(])|\bnot ", lambda _: [""]),
    "constant": (r"(?<![\w.\0])(\d+)(\.0f?)?(?![\w.])", _constants),
    "extremum": (rf"\b({_one_of(_LARGEST)})(?=[(<])", _from(_LARGEST)),
    "name": (rf"(?<![A-Za-z0-9])({_one_of(_OTHER_NAME)})(?![A-Za-z0-9(])", _from(_OTHER_NAME)),
    "truth": (r"\b(true|false|True|False)\b", _from(_TRUTH)),
    "branches swapped": (r"(?<= \? )([^?:\0]+) : ([^?:;,\0]+?)(?=[;,)}]|$)", lambda m: [f"{m[2]} : {m[1]}"]),
    "condition": (r"(?<=\bif )[^(].*?(?= else |:[ \0]*$)", lambda _: ["True", "False"]),
    "call dropped": (r"torch::stable::contiguous\b", lambda _: [""]),
}
_STATEMENT = re.compile(r"^( *)(?:[\w.:>\[\]-]+(?:<[\w:]+>)?\(.*\)|(?:continue|break)|[\w.*>\[\]-]+ [-+*/]?= .*);$")


def mutants_of(file: str, text: str) -> list[Mutant]:
    """All of a source, in the order of its lines; no two make the same line of one."""
    python = file.endswith(".py")
    lines = text.splitlines()
    masked = (_mask_python(text) if python else _mask_cpp(text)).split("\n")
    droppable = _python_statements(text) if python else _cpp_statements(masked)
    words = _words_nearby(text, masked, python)
    made: dict[tuple[int, str], Mutant] = {}
    for number, (line, code) in enumerate(zip(lines, masked, strict=False), start=1):
        if any(re.search(pattern, line) for pattern in EXCLUDED):
            continue
        changes = list(_changes(line, code, words[number - 1]))
        if not python:
            changes += _conditions(line, code)
        changes += _calls(line, code)
        if number in droppable:
            indent = line[: len(line) - len(line.lstrip())]
            changes.append(("statement dropped", indent + ("pass" if python else ";")))
        for operator, new in changes:
            if new != line:
                made.setdefault((number, new), Mutant(file, number, operator, line, new))
    return list(made.values())


def harmless(mutant: Mutant) -> str | None:
    """Why no test can notice, if a rule says so."""
    old, new = mutant.old.strip(), mutant.new.strip()
    return next((why for of, why in HARMLESS.items() if re.sub(of, "", old) == re.sub(of, "", new)), None)


def _changes(line: str, code: str, words: set[str]) -> Iterator[tuple[str, str]]:
    for operator, (pattern, replacements) in OPERATORS.items():
        for found in re.finditer(pattern, code):
            for other in replacements(found):
                new = line[: found.start()] + other + line[found.end() :]
                # A name that is nowhere near would be no defect but a mistake that anything finds.
                if operator == "name" and _word_at(new, found.start()) not in words:
                    continue
                yield operator, new


def _word_at(line: str, place: int) -> str:
    return next(found[0] for found in re.finditer(r"\w+", line) if found.start() <= place < found.end())


def _words_nearby(text: str, masked: list[str], python: bool) -> list[set[str]]:
    """For each line, the words of its function; of all the file in C++, where the compiler refuses unknown ones."""
    if not python:
        return [set(re.findall(r"\w+", "\n".join(masked)))] * len(masked)
    begins = [0, *(node.lineno - 1 for node in ast.parse(text).body), len(masked)]
    pieces = [set(re.findall(r"\w+", "\n".join(masked[i:j]))) for i, j in pairwise(begins)]
    return [pieces[bisect(begins, number) - 1] for number in range(len(masked))]


def _closing(code: str, opening: int) -> int:
    """Where the parenthesis that opens at ``opening`` is closed; -1 if it is not."""
    depth = 0
    for place in range(opening, len(code)):
        depth += (code[place] == "(") - (code[place] == ")")
        if depth == 0:
            return place
    return -1


def _conditions(line: str, code: str) -> list[tuple[str, str]]:
    """``if (...)`` of C++."""
    found = re.search(r"\bif \(", code)
    if found is None or (end := _closing(code, found.end() - 1)) < 0:
        return []
    return [("condition", f"{line[: found.end()]}{value}{line[end:]}") for value in ("true", "false")]


def _calls(line: str, code: str) -> list[tuple[str, str]]:
    """``where(c, x, y)`` to ``(x)``, and methods left out that mask, bound or lay out."""
    made = []
    for found in re.finditer(r"(?:\w+\.)?\bwhere\(|\.(?:masked_fill|clamp|contiguous)\(", code):
        end = _closing(code, found.end() - 1)
        if end < 0:
            continue
        if "where" not in found[0]:
            made.append(("call dropped", line[: found.start()] + line[end + 1 :]))
            continue
        commas = [i for i in range(found.end(), end) if code[i] == "," and _depth(code[found.end() : i]) == 0]
        if len(commas) == 2:
            kept = line[commas[0] + 2 : commas[1]]
            made.append(("mask dropped", f"{line[: found.start()]}({kept}){line[end + 1 :]}"))
    return made


def _depth(code: str) -> int:
    return sum((of in "([{") - (of in ")]}") for of in code)


def _cpp_statements(masked: list[str]) -> set[int]:
    """Numbers of lines that are a whole statement which may be left out: an assignment, a call or a jump."""
    found = set()
    before = "{"
    for number, code in enumerate(masked, start=1):
        code = code.rstrip(" \0")
        whole = before[-1:] in ";{}:" and _STATEMENT.match(code) and _depth(code) == 0
        if whole and not re.match(r" *(?:return|using|STD_TORCH_CHECK|const)\b", code):
            found.add(number)
        before = code or before
    return found


def _python_statements(text: str) -> set[int]:
    """Calls, augmented assignments, jumps, and assignments to a name that the right side has too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.stmt) or node.lineno != node.end_lineno:
            continue
        jump = isinstance(node, ast.AugAssign | ast.Continue | ast.Break)
        if jump or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            found.add(node.lineno)
        elif isinstance(node, ast.Assign):
            targets = {of.id for target in node.targets for of in ast.walk(target) if isinstance(of, ast.Name)}
            if targets & {of.id for of in ast.walk(node.value) if isinstance(of, ast.Name)}:
                found.add(node.lineno)
    return found


def _blank(text: str, spans: list[tuple[int, int]]) -> str:
    for begin, end in spans:
        text = text[:begin] + re.sub(r"[^\n]", _FILLER, text[begin:end]) + text[end:]
    return text


def _mask_cpp(text: str) -> str:
    """Blanks comments, texts, directives, and what a check says when it fails."""
    masked = re.sub(
        r'//[^\n]*|"(?:\\.|[^"\\\n])*"|^#(?:[^\n]*\\\n)*[^\n]*',
        lambda found: re.sub(r"[^\n]", _FILLER, found[0]),
        text,
        flags=re.MULTILINE,
    )
    spans = []
    for found in re.finditer(r"STD_TORCH_CHECK\(", masked):
        end = _closing(masked, found.end() - 1)
        said = masked.find(_FILLER, found.end(), end)
        if said >= 0:
            spans.append((said, end))
    return _blank(masked, spans)


def _mask_python(text: str) -> str:
    """Blanks comments, texts, annotations, imports, decorators, and what is raised."""
    lines = text.splitlines(keepends=True)
    begins = [0]
    for line in lines:
        begins.append(begins[-1] + len(line))

    def place(line: int, column: int) -> int:  # columns of a syntax tree count bytes
        return begins[line - 1] + len(lines[line - 1].encode()[:column].decode())

    spans = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            spans.append((begins[token.start[0] - 1] + token.start[1], begins[token.end[0] - 1] + token.end[1]))
    for node in ast.walk(ast.parse(text)):
        blanked: list[Any] = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        blanked += getattr(node, "decorator_list", [])
        text_of = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        if text_of or isinstance(node, ast.Raise | ast.Import | ast.ImportFrom):
            blanked.append(node)
        spans += [(place(of.lineno, of.col_offset), place(of.end_lineno, of.end_col_offset)) for of in blanked if of]
    return _blank(text, spans)
