"""The forms in which data and tokenizers are named, and whether what is named is there.

Nothing heavy is imported here, so that a wrong source is found in the first second of a run.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from d2dmoe.errors import DataError

Forms = Mapping[
    str, tuple[str, str]
]  # by the word before the colon: what may follow, a description

VENDORED = (r"[\w-][\w.-]*", "vendored:NAME (a folder of resources/)")
HUB = (r"[^@]+(@[^@]+)?", "hub:NAME or hub:NAME@REVISION (Hugging Face or a local folder)")
IMAGE_FORMS: Forms = {
    "vendored": VENDORED,
    "torchvision": (r"[A-Za-z_]\w*", "torchvision:CLASS (of torchvision.datasets, e.g. CIFAR10)"),
    "hub": HUB,
    "path": (r".+", "path:FOLDER (train/CLASS/*.jpg, and the same in test/ or val/)"),
}
TEXT_FORMS: Forms = {
    "vendored": VENDORED,
    "hub": HUB,
    "path": (
        r".+",
        "path:FOLDER (train.* and test.* as parquet, csv, json, jsonl or txt; a corpus of which "
        "`test` documents are held out may be a single file)",
    ),
}
TOKENIZER_FORMS: Forms = {
    "train": ("", "train (on the training texts)"),
    "hub": HUB,
    "path": (r".+", "path:FOLDER_OR_FILE (tokenizer.json)"),
}
RESOURCES = Path(__file__).parents[3] / "resources"  # of the repository
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
TEST_NAMES = ("test", "validation", "val")  # in the order in which they are tried
TEXT_FILE = re.compile(r"(.+)\.(?:parquet|(?:csv|jsonl?|txt)(?:\.gz)?)")


def described(forms: Forms) -> str:
    """All forms in one line."""
    return "; ".join(form for _, form in forms.values())


def check_form(source: str, forms: Forms, what: str) -> str:
    """Return `source` if it has one of the forms.

    Raises:
        ValueError: it has none; `what` says what it should name.
    """
    kind, _, name = source.partition(":")
    if kind not in forms or not re.fullmatch(forms[kind][0], name):
        raise ValueError(f"{source!r} names no {what}. Allowed: {described(forms)}")
    return source


def check_images(source: str, root: Path) -> None:
    """Refuse a set of images whose local folders are not there.

    Raises:
        DataError: a vendored set or a local folder is missing or lacks its splits.
    """
    kind, _, name = source.partition(":")
    if kind == "vendored":
        _check_vendored(name, root)
    elif kind == "hub":
        _check_hub(name, root, "dataset", "ylecun/mnist")
    elif kind == "path":
        _check_tree(root / name)


def check_texts(source: str, root: Path, holds_out_test: bool) -> None:
    """Refuse a set of texts whose local files are not there.

    Args:
        source: of texts, labelled or not.
        root: the repository root.
        holds_out_test: the source needs no test split: texts are held out of the training split.

    Raises:
        DataError: a vendored set, a local file or folder is missing or lacks its splits.
    """
    kind, _, name = source.partition(":")
    if kind == "vendored":
        _check_vendored(name, root)
    elif kind == "hub":
        _check_hub(name, root, "dataset", "allenai/c4")
    elif kind == "path":
        _check_text_files(root / name, holds_out_test)


def check_tokenizer(source: str, root: Path) -> None:
    """Refuse a tokenizer whose local file is not there.

    Raises:
        DataError: it is not there.
    """
    kind, _, name = source.partition(":")
    if kind == "hub":
        _check_hub(name, root, "tokenizer", "openai-community/gpt2")
    elif kind == "path" and not find_tokenizer(root / name).is_file():
        raise DataError(
            f"tokenizer path:{name}: there is no file {find_tokenizer(root / name)}. Correct the "
            "path; `save_pretrained` of a fast tokenizer writes such a file."
        )


def find_test_folder(tree: Path) -> Path | None:
    """The folder of an ImageFolder tree that serves as its test set: the first with classes.

    ImageNet's test labels are not public, so its validation images are, as is customary, the test
    set: a test/ without class folders is passed over.
    """
    return next((tree / name for name in TEST_NAMES if _has_classes(tree / name)), None)


def class_folders(tree: Path) -> list[str]:
    """The names of an ImageFolder tree's classes."""
    return sorted(p.name for p in (tree / "train").iterdir() if p.is_dir())


def find_text_files(path: Path) -> dict[str, Path]:
    """The files of each split: of a folder by name (train.csv), a single file is all training.

    Raises:
        DataError: two files are of one split.
    """
    if path.is_file():
        return {"train": path}
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        match = TEXT_FILE.fullmatch(file.name)
        if match and match[1] in ("train", *TEST_NAMES):
            if match[1] in found:
                raise DataError(
                    f"path:{path}: both {found[match[1]].name} and {file.name} are there. Keep one."
                )
            found[match[1]] = file
    return found


def find_tokenizer(path: Path) -> Path:
    """The tokenizer.json of a path to it, or to its folder."""
    return path / "tokenizer.json" if path.is_dir() else path


def find_vendored(name: str, root: Path) -> Path:
    """The folder of a vendored set: in `root`'s resources/, or else in the repository's."""
    own = root / "resources" / name
    return own if own.is_dir() else RESOURCES / name


def _check_vendored(name: str, root: Path) -> None:
    folder = find_vendored(name, root)
    if not folder.is_dir():
        sums = [*(root / "resources").glob("*/SHA256SUMS"), *RESOURCES.glob("*/SHA256SUMS")]
        known = ", ".join(sorted({path.parent.name for path in sums})) or "none"
        raise DataError(
            f"vendored:{name}: there is no {folder}. Vendored sets: {known}. "
            "Correct the source, or restore the folder with `git checkout -- resources`."
        )


def _check_hub(name: str, root: Path, what: str, example: str) -> None:
    name = name.partition("@")[0]
    if not HUB_NAME.fullmatch(name) and not (root / name).is_dir():
        raise DataError(
            f"hub:{name}: there is no folder {root / name}, and no {what} of the Hugging Face hub "
            f"has such a name. Correct the path, or give a name such as {example}."
        )


def _check_tree(tree: Path) -> None:
    if not tree.is_dir():
        raise DataError(f"path:{tree}: there is no such folder. Correct the source.")
    if not _has_classes(tree / "train") or find_test_folder(tree) is None:
        found = ", ".join(sorted(p.name for p in tree.iterdir() if p.is_dir())) or "none"
        raise DataError(
            f"path:{tree} needs train/ and test/ or val/, each with a folder of images per class; "
            f"folders found: {found}. Arrange the images as train/CLASS/*.jpg and val/CLASS/*.jpg."
        )
    if len(class_folders(tree)) < 2:
        raise DataError(
            f"path:{tree}: all images of train/ are of the one class {class_folders(tree)[0]}; "
            "at least two classes are needed. Give each a folder of its own."
        )


def _check_text_files(path: Path, holds_out_test: bool) -> None:
    if not path.exists():
        raise DataError(f"path:{path}: there is no such file or folder. Correct the source.")
    if path.is_file() and not TEXT_FILE.fullmatch(path.name):
        raise DataError(
            f"path:{path} is of no known kind. Allowed: .parquet, .csv, .json, .jsonl and .txt."
        )
    files = find_text_files(path)
    if "train" not in files or not (holds_out_test or set(files) & set(TEST_NAMES)):
        found = ", ".join(file.name for file in files.values()) or "none"
        raise DataError(
            f"path:{path}: a folder with train.* and test.* or validation.* is needed (parquet, "
            f"csv, json, jsonl or txt); files found: {found}. Name them so; of a corpus, `test` "
            "may hold documents out instead."
        )


def _has_classes(folder: Path) -> bool:
    return folder.is_dir() and any(p.is_dir() for p in folder.iterdir())
