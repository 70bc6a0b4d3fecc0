"""Where figures and tables are written: known without the packages that draw them, which take seconds to import."""

import os
from pathlib import Path

OUTPUT_VARIABLE = "SKDCGN_ANALYSIS_OUTPUT"
"""Environment variable that names the folder for figures and tables; `render` sets it for the notebooks."""


def output_folder() -> Path:
    """Return the folder that figures and tables are written to."""
    return Path(os.environ.get(OUTPUT_VARIABLE) or Path(__file__).parents[1] / "output")
