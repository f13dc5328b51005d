"""sweeper: which small model, taught by which big one, with which loss and how much synthetic data."""

__version__ = "0.1.0"
