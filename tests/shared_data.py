"""The real data of tests and benchmarks: found in one folder, each file compared with its checksum.

    python tests/shared_data.py            # say which files are there, missing or different
    python tests/shared_data.py --write    # write the checksums anew, after a deliberate change of the data

The folder is `$LDVAE_DATA`, else `shared/data` beside the clone. The files come from public repositories, which the
README.md in the folder names; none is downloaded, so that tests need no network.
"""

import argparse
import hashlib
import os
import sys
from functools import cache
from pathlib import Path

CHECKSUMS = Path(__file__).with_name("shared_data.sha256")
FOLDER = Path(os.environ.get("LDVAE_DATA") or Path(__file__).parents[2] / "shared" / "data").resolve()
REMEDY = (
    "The data of tests and benchmarks are no part of the repository: copy their folder beside the clone as "
    "shared/data, or name it by LDVAE_DATA=/path/to/data. Its README.md says which public repositories they are from."
)


class MissingDataError(FileNotFoundError):
    """A data set that is not there, with how to get it."""


def checksums() -> dict[str, str]:
    """SHA-256 of each file, by its path in the folder."""
    return {name: digest for digest, name in (line.split("  ", 1) for line in CHECKSUMS.read_text().splitlines())}


def sha256(path: Path) -> str:
    """Checksum of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def fetch(name: str = ".") -> Path:
    """Path of a file or folder of the data whose files all have the recorded checksums.

    Parameters
    ----------
    name
        Path within the folder, such as `kang2018_stim_ctrl.h5ad` or `bad`; `.` is the whole folder.

    Raises
    ------
    MissingDataError
        Where it is not there; the message says how to get it.
    ValueError
        Where a file differs from the recorded one, or nothing of this name is recorded.
    """
    path = FOLDER / name
    if not path.exists():
        raise MissingDataError(f"{path} is not there. {REMEDY}")
    parts = Path(name).parts
    recorded = {file: digest for file, digest in checksums().items() if Path(file).parts[: len(parts)] == parts}
    if not recorded:
        raise ValueError(f"{CHECKSUMS.name} records no file of the name {name!r}.")
    for file, digest in recorded.items():
        if not (FOLDER / file).exists():
            raise MissingDataError(f"{FOLDER / file} is not there. {REMEDY}")
        if sha256(FOLDER / file) != digest:
            raise ValueError(f"{FOLDER / file} is not the file whose checksum {CHECKSUMS.name} records. {REMEDY}")
    return path


def main() -> int:
    """Compare the whole folder with the checksums, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the checksums anew")
    if parser.parse_args().write:
        files = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*") if path.is_file())
        lines = [f"{sha256(FOLDER / file)}  {file}\n" for file in files if file.name != "README.md"]
        CHECKSUMS.write_text("".join(lines))
        return 0
    try:
        print(f"All {len(checksums())} files of {fetch()} are those recorded.")
    except (MissingDataError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
