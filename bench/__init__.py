"""Measurements: ``python -m bench``."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars would run into the table; tqdm looks here when it is imported
