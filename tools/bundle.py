"""One folder with all that a run needs, for a GPU machine without a network: docs/bundle.md.

uv run python tools/bundle.py FOLDER --configfile configs/gpu.yaml --task newsgroups
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
RUN = Path(__file__).parent / "bundle_run.sh"
NEEDED = ("Snakefile", "pyproject.toml", "configs", "profiles", "report", "rules", "scripts", "src")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="to make; must not be there yet")
    parser.add_argument("--configfile", type=Path, default=ROOT / "config.yaml")
    parser.add_argument("--task", action="append", help="of the configuration; default: all")
    parser.add_argument("--installed", type=Path, help="`pip list --format=freeze` of the machine")
    parser.add_argument("--python", default="3.12", help="its version")
    parser.add_argument("--machine", default="x86_64", help="its `uname -m`")
    return parser.parse_args()


def main() -> None:
    """Make the bundle, and say how large it is."""
    args = options()
    if args.folder.exists():
        sys.exit(f"{args.folder} is there already: remove it, or name another folder.")
    tree = args.folder / "tree"
    config = trimmed(yaml.safe_load(args.configfile.read_text()), args.task)
    for path in [*tracked(NEEDED), *data_of(config)]:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, tree / path)
    (tree / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False))
    shutil.copy(RUN, args.folder / "run")
    if args.installed:
        fetch_wheels(args.folder / "wheels", args.installed.read_text(), args.python, args.machine)
    size = sum(path.stat().st_size for path in args.folder.rglob("*") if path.is_file())
    print(f"{args.folder}: {size / 2**20:.0f} MiB")


def trimmed(config: dict[str, Any], tasks: list[str] | None) -> dict[str, Any]:
    """The configuration with these of its tasks alone; entries that name others go too."""
    known = config["tasks"]
    if unknown := sorted(set(tasks or ()) - known.keys()):
        sys.exit(f"no task {', '.join(unknown)}; the configuration has {', '.join(known)}.")
    kept = {name: known[name] for name in tasks or known}
    rest = {key: value for key, value in config.items() if key not in ("tasks", "benchmarks")}
    return rest | {"tasks": kept}


def tracked(names: tuple[str, ...]) -> list[Path]:
    """Files of the repository below these."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", *names]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name]


def data_of(config: dict[str, Any]) -> list[Path]:
    """Files that the configuration names by a path, and vendored sets."""
    found: set[Path] = set()
    for value in texts(config):
        kind, _, name = value.partition(":")
        place = Path("resources", name) if kind == "vendored" else Path(name)
        if kind not in ("vendored", "path") or not (ROOT / place).exists():
            continue
        inside = [p for p in (ROOT / place).rglob("*") if p.is_file()]
        found |= {p.relative_to(ROOT) for p in inside or [ROOT / place]}
    return sorted(found)


def texts(value: Any) -> Iterator[str]:
    """All texts among the values of a configuration."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def fetch_wheels(folder: Path, installed: str, python: str, machine: str) -> None:
    """The wheels that the workflow needs and the machine lacks.

    Args:
        folder: to put them into.
        installed: lines NAME==VERSION of what is there: these versions are taken as they are, also
            where this project asks for later ones.
        python: its version, as 3.12.
        machine: its processor, as x86_64.
    """
    folder.mkdir(parents=True)
    pins = [line for line in installed.splitlines() if re.fullmatch(r"[\w.-]+==[\w.+!-]+", line)]
    overrides = folder / "installed.txt"
    overrides.write_text("\n".join(pins) + "\n")
    there = {normal(pin.partition("==")[0]) for pin in pins}
    compile_ = ["uv", "pip", "compile", "-q", "--no-header", "--no-annotate", "--extra", "pipeline"]
    compile_ += ["--override", str(overrides), "--python-version", python]
    compile_ += ["--python-platform", f"{machine}-manylinux_2_28", str(ROOT / "pyproject.toml")]
    listed = subprocess.run(compile_, capture_output=True, text=True)
    if listed.returncode:
        sys.exit(f"the packages cannot be resolved:\n{listed.stderr}")
    wanted = [
        pin
        for pin in listed.stdout.split()
        if normal(pin.partition("==")[0]) not in there and not pin.startswith(("nvidia-", "cuda-"))
    ]
    target = [f"--platform={name}_{machine}" for name in PLATFORMS]
    target += [f"--python-version={python}", "--implementation=cp"]
    pip("download", "-d", str(folder), *target, *wanted)
    overrides.unlink()
    for source in [*folder.glob("*.tar.gz"), *folder.glob("*.zip")]:
        pip("wheel", "-w", str(folder), str(source))
        source.unlink()
    check_pure(folder, python, machine)


def pip(command: str, *arguments: str) -> None:
    """Call pip, for packages without what they need: all of that is listed."""
    if subprocess.run(["uvx", "pip", command, "-q", "--no-deps", *arguments]).returncode:
        sys.exit("the packages cannot be had; see above.")


def check_pure(folder: Path, python: str, machine: str) -> None:
    """Wheels that were made here, of packages that are published as source alone, fit there."""
    fitting = (f"-cp{python.replace('.', '')}-", "-abi3-", "-py3-none-")
    for wheel in folder.glob("*.whl"):
        pure = wheel.name.endswith("-none-any.whl")
        if not pure and not (machine in wheel.name and any(f in wheel.name for f in fitting)):
            sys.exit(f"{wheel.name} does not fit the machine: install the package there.")


def normal(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
