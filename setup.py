"""What pyproject.toml cannot say: the served notebooks, which lie beside the package, go into the wheel."""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py


class WithApps(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            for notebook in sorted(Path("nbs/apps").glob("*.ipynb")):
                copyfile(notebook, self.in_build_lib(notebook.name))

    def in_build_lib(self, name: str) -> str:
        folder = Path(self.build_lib, "dtwb", "apps")
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / name)


setup(cmdclass={"build_py": WithApps})
