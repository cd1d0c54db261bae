"""Where the files of this workflow are: a folder, or a tag of a repository. Where ldvae is not installed, it is read from there."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

# The folder that holds workflow/: of a clone, or of the package in a wheel. None where Snakemake fetches each file.
_rules = Path(workflow.current_basedir.get_path_or_uri(secret_free=False))
SOURCE = _rules.parents[1] if _rules.is_dir() else None


class LdvaeOfSource(importlib.abc.MetaPathFinder):
    """Finds the modules of ldvae that planning needs. What they import must be installed beside Snakemake."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] != "ldvae":
            return None
        name = fullname.replace(".", "/")
        for inside, is_package in ((f"{name}/__init__.py", True), (f"{name}.py", False)):
            file = self.located(inside)
            if file is not None:
                loader = importlib.machinery.SourceFileLoader(fullname, file)
                folders = [str(Path(file).parent)] if is_package else None
                return importlib.util.spec_from_file_location(
                    fullname, file, loader=loader, submodule_search_locations=folders
                )
        return None

    def located(self, inside):
        """Path of a file of the package; None where there is none."""
        if SOURCE is None:
            try:
                return str(workflow.source_path(f"../../{inside}"))
            except Exception:  # of each kind of source its own
                return None
        if (SOURCE / "__init__.py").exists():  # a wheel holds workflow/ in the package
            inside = inside.removeprefix("ldvae/")
        return str(SOURCE / inside) if (SOURCE / inside).exists() else None


sys.meta_path.append(LdvaeOfSource())
