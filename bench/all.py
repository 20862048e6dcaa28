"""Runs every script of this folder, one after the other, and prints their findings as one JSON object.

In: options that are passed on (`--quick`). Out: the JSON on stdout, one line per claim on stderr.
Invariant: the exit status is 1 when a script failed, not when a claim did not hold on this machine in this hour.
Next: ARCHITECTURE.md.
"""

import json
import sys

import harness

SCRIPTS = ("install_size", "import_time", "op_overhead", "train_step", "compiled", "generate", "encode", "accuracy")


def run_script(name: str) -> harness.Result:
    """Run one script; its JSON, or what it said when it failed."""
    print(f"== {name}", file=sys.stderr)
    try:
        return json.loads(harness.run([sys.executable, f"bench/{name}.py", *sys.argv[1:]]))
    except harness.BenchError as error:
        return {"bench": name, "error": str(error)}


def main() -> int:
    """Run all scripts and print what they found."""
    found = [run_script(name) for name in SCRIPTS]
    print(json.dumps(found, indent=2))
    for result in found:
        for line in [harness.verdict(claim) for claim in result.get("claims", [])] or [f"error  {result.get('error')}"]:
            print(line, file=sys.stderr)
    return int(any("error" in result for result in found))


if __name__ == "__main__":
    sys.exit(main())
