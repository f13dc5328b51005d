"""sweeper: which small model, taught by which big one, with which loss and how much synthetic data.

`sweeper.run(space)` and `sweeper.open(run)` give `sweeper.Results`; `api` has them, and is imported when asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeper.api import Results, open, run

__version__ = "0.1.0"
__all__ = ["Results", "__version__", "open", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sweeper' has no attribute {name!r}")
    from sweeper import api

    return getattr(api, name)
