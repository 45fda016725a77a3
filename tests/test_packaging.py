import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import moesim

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = SETUPTOOLS["package-dir"]

pytestmark = pytest.mark.xdist_group("packaging")  # so that one worker builds once


def packages_in(tree: Path) -> list[str]:
    """Return every package of a source tree under the name it installs by."""
    return sorted(
        ".".join((package, *init.parent.relative_to(tree / folder).parts))
        for package, folder in FOLDERS.items()
        for init in (tree / folder).rglob("__init__.py")
    )


def shipped_files(tree: Path) -> set[str]:
    """Return every source and data file of a source tree under its path in a wheel."""
    return {
        f"{package.replace('.', '/')}/{path.relative_to(tree / folder).as_posix()}"
        for package, folder in FOLDERS.items()
        for pattern in ("**/*.py", *SETUPTOOLS["package-data"].get(package, ()))
        for path in (tree / folder).glob(pattern)
        if path.is_file()
    }


def run_python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    answer = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout.strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build in a copy, which setuptools may litter; the wheel is made from the sdist, which so proves complete."""
    tree = tmp_path_factory.mktemp("packaging") / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in (*set(FOLDERS.values()), "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "examples").mkdir()
    (tree / "examples" / "scenario.yaml").write_text("name: not to be shipped\n")
    run_python("-m", "build", "--no-isolation", cwd=tree)
    return tree / "dist"


@pytest.fixture(scope="module")
def unpacked(built: Path) -> Path:
    """Unpack the wheel, which is pure Python and so as good as installed."""
    folder = built.parent.parent / "site"
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def test_the_list_of_packages_is_the_tree():
    assert SETUPTOOLS["packages"] == packages_in(ROOT)


def test_data_has_no_init():
    assert not list((ROOT / "moesim" / "data").rglob("__init__.py"))


def test_the_version_is_written_alike_everywhere():
    version = PROJECT["project"]["version"]
    assert moesim.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_no_core_dependency_is_torch_and_every_one_is_pinned():
    pinned = {
        line.partition("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    extras = PROJECT["project"]["optional-dependencies"]
    core = {requirement.partition(">=")[0].lower() for requirement in PROJECT["project"]["dependencies"]}
    others = {requirement.partition(">=")[0].lower() for extra in extras.values() for requirement in extra}
    assert "torch" not in core
    assert core | others <= pinned


def test_the_wheel_holds_the_library_both_wings_and_all_data(unpacked):
    held = {
        path.relative_to(unpacked).as_posix()
        for path in unpacked.rglob("*")
        if path.is_file() and ".dist-info" not in path.as_posix()
    }
    assert held == shipped_files(ROOT)
    assert {"moesim/py.typed", "moesim/calibrate/__init__.py", "moesim/validate/__init__.py"} <= held


def test_the_wheel_publishes_no_name_but_moesim(unpacked):
    assert {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")} == {"moesim"}


def test_the_sdist_holds_what_the_wheel_is_built_from(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "calibrate/__init__.py", "moesim/py.typed"} <= held
    assert not any(name.startswith("examples") for name in held)


@pytest.mark.parametrize("wing", ["calibrate", "validate", "hardware_profiles"])
def test_a_wing_is_imported_by_its_installed_name(unpacked, tmp_path, wing):
    code = f"import moesim.{wing}; print(moesim.{wing}.__file__)"
    found = run_python("-c", code, cwd=tmp_path, path=unpacked)
    assert Path(found) == unpacked / "moesim" / wing / "__init__.py"


def test_profiles_are_found_as_package_data(unpacked, tmp_path):
    code = (
        "from importlib.resources import files\n"
        "for path in files('moesim.hardware_profiles').rglob('*.yaml'): print(path)"
    )
    found = run_python("-c", code, cwd=tmp_path, path=unpacked).splitlines()
    assert len(found) == len(list((ROOT / "hardware_profiles").rglob("*.yaml"))) > 0


@pytest.fixture(scope="module")
def editable(built: Path) -> Path:
    """Install in place, offline: into a folder of its own, without dependencies or build isolation."""
    prefix = built.parent.parent / "editable"
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", "--prefix", str(prefix))
    pip = ("-m", "pip", "--disable-pip-version-check", "install")
    run_python(*pip, *options, "--editable", str(built.parent), cwd=built.parent.parent)
    return next(prefix.rglob("site-packages"))


@pytest.mark.parametrize("folder", ["elsewhere", "repository"])
def test_an_editable_install_finds_the_wings_from_any_folder(built, editable, tmp_path, folder):
    tree = built.parent
    # Without the site of the environment at hand (-S), where moesim may be installed in place as well.
    code = f"""
import site; site.addsitedir({str(editable)!r})
import moesim.calibrate, moesim.validate, moesim.hardware_profiles
for wing in (moesim.calibrate, moesim.validate, moesim.hardware_profiles): print(wing.__file__)
"""
    found = run_python("-S", "-c", code, cwd=tree if folder == "repository" else tmp_path).splitlines()
    assert [Path(path) for path in found] == [
        tree / wing / "__init__.py" for wing in ("calibrate", "validate", "hardware_profiles")
    ]
