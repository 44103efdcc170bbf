"""Do the tests notice a defect? Puts small ones into the ops, one at a time, and runs the tests of each.

    python -m tools.mutate [--sample N] [--seed S] [--only FILE] [--resume] [--survivors] [--json FILE]

takes a seeded sample of what tools/mutants.py makes of the code of masking, softmax, pooling and addressing, and tries
each in a scratch copy of the tree: C++ is compiled anew where it changed, the Triton kernels run in their interpreter.
A mutant is caught when a test fails, or when the tests take far too long. Results are written to FILE after each, so
that ``--resume`` goes on where a run was cut off; ``--survivors`` tries those again that FILE says survived, unless a
reason is known.

Why a survivor is harmless stands in tests/records/survivors.json: by file, then by "old line -> new line".
The exit code is 1 where less than 90 % are caught, or where a survivor has no reason.

CUDA kernels are left out: without a GPU nothing runs them.
"""

import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

from tools.mutant_runs import BY_RULE, CAUGHT, NO_CODE, ROOT, SAME_CODE, SURVIVED, TESTS, Copy
from tools.mutants import EXCLUDED, HARMLESS, Mutant, harmless, mutants_of

REASONS = ROOT / "tests" / "records" / "survivors.json"
LEAST_PER_FILE = 10
LEAST_SHARE = 0.9


def _by_turns(groups: Iterable[list[Mutant]]) -> list[Mutant]:
    return [mutant for turn in zip_longest(*groups) for mutant in turn if mutant is not None]


def _grouped(mutants: Iterable[Mutant], by: str) -> list[list[Mutant]]:
    groups: dict[object, list[Mutant]] = {}
    for mutant in mutants:
        groups.setdefault(getattr(mutant, by), []).append(mutant)
    return list(groups.values())


def drawn(mutants: list[Mutant], seed: int, file: str) -> list[Mutant]:
    """In random order, every line before any line's second, and every operator of a line before one's second."""
    shuffled = random.Random(f"{seed} {file}").sample(mutants, len(mutants))
    return _by_turns([_by_turns(_grouped(of, "operator")) for of in _grouped(shuffled, "line")])


def change(mutant: Mutant) -> str:
    return f"{mutant.old.strip()} -> {mutant.new.strip()}"


def keys(mutants: list[Mutant]) -> dict[str, Mutant]:
    """By a name that holds when lines move: what changes, and which one if a file has several such lines."""
    named = {}
    count: Counter[str] = Counter()
    for mutant in mutants:
        count[change(mutant)] += 1
        number = count[change(mutant)]
        named[change(mutant) + (f" (#{number})" if number > 1 else "")] = mutant
    return named


def shares(lines: dict[str, int], sample: int) -> dict[str, int]:
    """How many of each file's: in proportion to the lines that can be changed, but not too few."""
    return {file: max(LEAST_PER_FILE, round(sample * of / sum(lines.values()))) for file, of in lines.items()}


def report(results: dict[str, dict], made: dict[str, dict[str, Mutant]], reasons: dict[str, dict]) -> dict:
    """The figures: for each file, and each survivor with the reason why."""
    files, survivors = {}, []
    for file, tried in results.items():
        count = Counter(of["outcome"] for of in tried.values())
        of_file = made.get(file, {})
        files[file] = {
            "population": len(of_file),
            "tried": count[CAUGHT] + count[SURVIVED],
            "caught": count[CAUGHT],
            "survived": count[SURVIVED],
            "not counted": {kind: count[kind] for kind in (NO_CODE, SAME_CODE, BY_RULE)},
        }
        for key, of in tried.items():
            if of["outcome"] == SURVIVED and key in of_file:
                mutant = of_file[key]
                survivors.append(
                    {
                        "place": f"{file}:{mutant.line}",
                        "operator": mutant.operator,
                        "change": change(mutant),
                        "reason": reasons.get(file, {}).get(change(mutant)),
                    }
                )
    counted = sum(of["tried"] for of in files.values())
    caught = sum(of["caught"] for of in files.values())
    share = caught / counted if counted else 0.0
    return {"tried": counted, "caught": caught, "share": round(share, 4), "files": files, "survivors": survivors}


def verdict(figures: dict) -> int:
    """The exit code, and on stderr what is wrong."""
    unexplained = [of for of in figures["survivors"] if not of["reason"]]
    for of in unexplained:
        print(f"no reason for {of['place']}: {of['change']}", file=sys.stderr)
    if figures["share"] < LEAST_SHARE:
        print(f"{figures['share']:.1%} are caught, {LEAST_SHARE:.0%} are asked for", file=sys.stderr)
    return int(bool(unexplained) or figures["share"] < LEAST_SHARE)


def main() -> int:
    # Not above: they import esim_fast, and a process that tries a mutant must import the mutant.
    from benchmarks.command import Parser, add_json, positive, write_json

    os.environ |= {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    parser = Parser(prog="python -m tools.mutate", description="Puts defects into the ops: do the tests notice?")
    parser.add_argument("--sample", type=positive, help="mutants in all, at least 10 of each file (240)")
    parser.add_argument("--seed", type=int, help="of the sample (0)")
    parser.add_argument("--only", metavar="FILE", choices=TESTS, help="mutants of one file")
    parser.add_argument("--resume", action="store_true", help="leave out what the file of --json has results of")
    parser.add_argument("--survivors", action="store_true", help="try again what survived without a reason")
    parser.add_argument("--report", action="store_true", help="try nothing: only the figures, with the reasons of now")
    add_json(parser)
    options = parser.parse_args()
    going_on = options.resume or options.survivors or options.report
    if going_on and (options.json is None or not options.json.is_file()):
        parser.error("--resume, --survivors and --report need the --json FILE of an earlier run")
    earlier = json.loads(options.json.read_text(encoding="utf-8")) if going_on else {}
    results = earlier.get("results", {})
    sample = options.sample or earlier.get("sample", 240)
    seed = earlier.get("seed", 0) if options.seed is None else options.seed

    every = {file: mutants_of(file, (ROOT / file).read_text(encoding="utf-8")) for file in TESTS}
    made = {file: keys(of) for file, of in every.items()}
    results = {file: {key: of for key, of in results.get(file, {}).items() if key in made[file]} for file in TESTS}
    for file, of in made.items():
        for key, mutant in of.items():
            if harmless(mutant) and results[file].pop(key, None):
                results[file][key] = {"outcome": BY_RULE}
    wanted = shares({file: len({mutant.line for mutant in of}) for file, of in every.items()}, sample)
    files = [options.only] if options.only else list(TESTS)
    settings = {
        "command": f"python -m tools.mutate --sample {sample} --seed {seed}",
        "sample": sample,
        "seed": seed,
        "population": sum(map(len, every.values())),
        "excluded": EXCLUDED,
        "harmless": HARMLESS,
    }

    reasons = json.loads(REASONS.read_text(encoding="utf-8")) if REASONS.is_file() else {}

    def figures() -> dict:
        return {**settings, **report(results, made, reasons)}

    def attempt(copy: Copy, file: str, key: str) -> None:
        outcome, by = copy.try_out(made[file][key])
        results[file][key] = {"outcome": outcome} | ({"by": by} if by else {})
        print(f"{outcome:<8} {file}:{made[file][key].line}: {key}  {by}", flush=True)
        write_json(parser, options.json, {**figures(), "results": results})

    def retried(file: str) -> Iterator[str]:
        for key in [key for key, of in results[file].items() if of["outcome"] == SURVIVED]:
            if change(made[file][key]) not in reasons.get(file, {}):
                yield key

    def sampled(file: str) -> Iterator[str]:
        """The next of the sample that was not tried, until enough of it count."""
        names = {mutant: key for key, mutant in made[file].items()}
        counted = 0
        for mutant in drawn(every[file], seed, file):
            if counted == wanted[file]:
                return
            if harmless(mutant):
                results[file][names[mutant]] = {"outcome": BY_RULE}
            elif names[mutant] not in results[file]:
                yield names[mutant]
            counted += results[file][names[mutant]]["outcome"] in (CAUGHT, SURVIVED)

    if not options.report:
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            copy = Copy(Path(folder))
            for file in files:
                for key in retried(file) if options.survivors else sampled(file):
                    copy.check_unchanged(file)
                    attempt(copy, file, key)
    found = figures()
    write_json(parser, options.json, {**found, "results": results})
    for file, of in found["files"].items():
        print(f"{of['caught']:>4} of {of['tried']:>4} caught  {file}")
    print(f"{found['caught']} of {found['tried']} caught, {found['share']:.1%}")
    return verdict(found)


if __name__ == "__main__":
    sys.exit(main())
