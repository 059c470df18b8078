"""Reading a run's folder: its results as pandas frames, and how far it has come.

Only stored files are read. Nothing is computed again, and neither the model nor the sources of the
questions need to exist any more.
"""

from ift_scale.run_folder.reader import Run

__all__ = ["Run"]
