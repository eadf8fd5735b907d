"""together: several ordinary machines run one language model. This package imports nothing of its own."""

import os

__version__ = "0.1.0"

# gRPC has no switch for TLS 1.3 alone, and reads this once: of older versions only a suite for RSA keys is left, and
# no certificate of ours has one. Whatever the shell says must not open that door again.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would print a line for each stranger at the door
