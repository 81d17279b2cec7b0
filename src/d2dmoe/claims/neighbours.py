"""What the papers of neighbouring methods claim, of the methods as they are here."""

from d2dmoe.claims.evidence import Evidence
from d2dmoe.claims.findings import Finding, beats, untested

FIGURE = "neighbours"


def channel_thresholds(e: Evidence) -> list[Finding]:
    """N1: CHESS is above CATS, the first variant of each; what they cost is the density alone."""
    chess, cats = (_first(e, method) for method in ("chess", "cats"))
    if chess is None or cats is None:
        return [untested("needs a CHESS and a CATS variant")]
    return [beats(e, chess, [cats], "their cost is a line in the density")]


def _first(e: Evidence, method: str) -> str | None:
    """The first variant of a method in the legend of the figure."""
    return next((v for v in e.roles.get(FIGURE, []) if e.method(v) == method), None)
