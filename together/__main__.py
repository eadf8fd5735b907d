"""`python -m together`: runs the command line and leaves at once."""

import contextlib
import logging
import os
import sys

from together.desktop.cli import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a pipe whose reader left
            stream.flush()
    # Everything of ours is closed by now; Python's own end, after gRPC and Gradio were loaded, takes seconds more.
    os._exit(code)
