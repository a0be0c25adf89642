"""Makes this folder the package ``benchmarks`` for a file that is run: ``python benchmarks/x.py``.

Python then looks for modules in the folder itself, not in the one above, and finds this one.
``python -m benchmarks.x`` and the tests do not need it.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent)]
