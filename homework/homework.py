"""What ``python homework/NAME.py`` finds in place of the package, which it needs: files of a package are not run by path.

Such a run looks for all modules in this folder first. There tokenize.py has the name of a module of the standard library,
which nearly everything imports, so tokenize.py imports this file too if it finds itself to be that module.
"""

import sys
from pathlib import Path

if __name__ == "homework":
    name = Path(sys.argv[0]).stem
    sys.exit(f"error: {name}.py is part of a package: in the folder that has homework/, call python -m homework.{name}.")
