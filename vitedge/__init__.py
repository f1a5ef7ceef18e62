"""vitedge: Vision Transformers on edge boards, compressed, compiled and measured.

The command line is `vitedge`; the same steps are functions of `vitedge.pipeline` over a `vitedge.bundle.Bundle`.
Importing this package imports neither torch nor any vendor's library.
"""

__version__ = "0.1.0"
