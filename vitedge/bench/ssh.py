"""Commands and files over the system's own ssh, so that keys, ports and jump hosts are as the user has
them."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from vitedge.manifest import sha256_file

# BatchMode: a question for a password would wait for ever. The keep-alives notice a cut link within 15 s.
OPTIONS: tuple[str, ...] = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=5")
OPTIONS += ("-o", "ServerAliveCountMax=3")
LINK_LOST = 255  # ssh's own exit status for anything that is its own failure


class LinkFailed(Exception):
    """ssh itself failed: refused, unreachable, not authenticated, or cut. The text is ssh's own."""


class Ssh:
    """One host. `command` is how ssh is called, such as ("ssh", "-p", "2222")."""

    def __init__(self, host: str, command: Sequence[str] = ("ssh",)) -> None:
        if host.startswith("-"):
            raise LinkFailed(f"'{host}' is no host")  # ssh would take it for an option
        self.host, self.command = host, [*command, *OPTIONS, "--", host]

    def run(self, script: str, *, feed: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Runs a shell command on the host. Raises LinkFailed where the link fails, not where the command
        does."""
        done = subprocess.run(
            [*self.command, script],
            input=feed,
            stdin=subprocess.DEVNULL if feed is None else None,
            capture_output=True,
            check=False,
        )
        self._check(done.returncode, done.stderr)
        return done

    def stream(self, script: str, line: Callable[[str], None]) -> int:
        """Runs a command, hands its stderr on line by line as it comes, and returns its exit status."""
        command = [*self.command, script]
        last = ""
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            assert process.stderr is not None
            for text in process.stderr:
                last = text.rstrip() or last
                line(text.rstrip())
        self._check(process.returncode, last.encode())
        return process.returncode

    def send(self, file: Path, to: str, advance: Callable[[int], None] = lambda n: None) -> None:
        """Copies a file to the path `to`, going on where an earlier copy was cut off; checked by SHA-256.

        Raises:
            LinkFailed: the link failed, or the copy came out wrong.
        """
        size = file.stat().st_size
        expected = sha256_file(file)
        place, part = _quote(to), _quote(f"{to}.part")
        if self.run(f"sha256sum {place} 2>/dev/null || true").stdout.split()[:1] == [expected.encode()]:
            advance(size)
            return
        held = self.run(f'mkdir -p "$(dirname {place})" && (wc -c < {part} 2>/dev/null || echo 0)').stdout
        start = int(held) if held.strip().isdigit() and int(held) <= size else 0
        cut = f"cat >> {part}" if start else f"cat > {part}"
        advance(start)
        process = subprocess.Popen(
            [*self.command, cut], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stdin is not None and process.stderr is not None
        try:
            with file.open("rb") as source:
                source.seek(start)
                while chunk := source.read(1 << 18):
                    process.stdin.write(chunk)
                    advance(len(chunk))
            process.stdin.close()
        except BrokenPipeError:
            pass  # ssh says below why it ended
        said = process.stderr.read()
        if process.wait() != 0:
            self._check(process.returncode, said)
            raise LinkFailed(f"the file could not be written there: {_words(said)}")
        found = self.run(f"sha256sum {part}").stdout.split()[:1]
        if found != [expected.encode()]:
            self.run(f"rm -f {part}")
            raise LinkFailed("the copied file has another checksum; it was removed, so run it again")
        self.run(f"mv {part} {place}")

    def _check(self, status: int, said: bytes) -> None:
        if status == LINK_LOST:
            raise LinkFailed(_words(said) or "the link was cut")


def _quote(path: str) -> str:
    """For the remote shell; a leading ~/ stays the home folder there."""
    return "~/" + shlex.quote(path[2:]) if path.startswith("~/") else shlex.quote(path)


def _words(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
