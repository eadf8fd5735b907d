"""A machine's cluster secret: made on first use, kept as the join code in a file that its user alone may read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from filelock import FileLock

from together.errors import AppError, BadSetting
from together.jsonfile import write_whole
from together.trust.code import SECRET_BYTES, join_code, secret_of
from together.wording import reason_of

FILE = "join-code"


class SecretFile:
    """The secret in one folder; every process of a user reads the same one."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def known(self) -> bytes | None:
        """The secret, or None where none was made yet. Raises AppError for a file that cannot be read."""
        try:
            text = self.path.read_text(encoding="ascii")
            if os.name == "posix" and self.path.stat().st_mode & 0o077:
                self.path.chmod(0o600)  # as after a copy: others may read it no more
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else "it is no text"
            raise AppError(
                "the join code in {file} cannot be read: {reason}", file=str(self.path), reason=reason
            ) from None
        try:
            return secret_of(text)
        except BadSetting as error:
            message = "{file} holds no join code ({error}); join again, or delete the file for a new one"
            raise AppError(message, file=str(self.path), error=error.sentence) from None

    def get(self) -> bytes:
        """The secret, made now if there is none. Raises AppError where it cannot be kept."""
        if (known := self.known()) is not None:
            return known
        with self._locked():
            if (known := self.known()) is None:  # another process may have been first
                known = secrets.token_bytes(SECRET_BYTES)
                self._write(known)
            return known

    def code(self) -> str:
        """The join code, as it is shown. Raises as `get` does."""
        return join_code(self.get())

    def put(self, secret: bytes) -> None:
        """Join: keep another cluster's secret instead. Raises AppError."""
        with self._locked():
            self._write(secret)

    def rotate(self) -> bytes:
        """A new secret, which no other machine knows. Raises AppError."""
        secret = secrets.token_bytes(SECRET_BYTES)
        self.put(secret)
        return secret

    def _locked(self) -> FileLock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._lost(error) from None
        return FileLock(self.path.with_name(f"{FILE}.lock"))

    def _write(self, secret: bytes) -> None:
        """Whole or not at all, and never readable by others, not even for a moment."""
        try:
            write_whole(self.path, f"{join_code(secret)}\n".encode(), private=True)
        except OSError as error:
            raise self._lost(error) from None

    def _lost(self, error: OSError) -> AppError:
        message = "the join code cannot be kept in {file}: {reason}"
        return AppError(message, file=str(self.path), reason=reason_of(error))
