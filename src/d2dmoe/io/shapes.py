"""What a safetensors file holds, read from its header alone, without torch or numpy."""

import json
from pathlib import Path

LONGEST = 100_000_000  # bytes of a header, as safetensors itself allows


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of the tensors of a file, by name.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= LONGEST:
            raise ValueError("it does not begin as safetensors files do")
        header = json.loads(file.read(length))
    try:
        shapes = {name: [*x["shape"]] for name, x in header.items() if name != "__metadata__"}
    except (AttributeError, LookupError, TypeError):
        raise ValueError("its header lists no tensors") from None
    if not all(isinstance(size, int) for shape in shapes.values() for size in shape):
        raise ValueError("its header lists tensors without sizes")
    return shapes
