"""Seeds derived from other numbers, a stream of their own for each purpose."""

import hashlib


def seed_for(purpose: str, *numbers: int) -> int:
    """A seed in [0, 2**63) that shares nothing with other purposes' or neighbouring steps' seeds.

    Args:
        purpose: names the stream, e.g. "dropout".
        numbers: the run's seed, then whatever counts within the stream (epoch, step, layer).
    """
    digest = hashlib.blake2b(repr((purpose, *numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
