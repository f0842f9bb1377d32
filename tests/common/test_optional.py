"""Every module imports without the optional packages."""

import subprocess
import sys

OPTIONAL = [
    *("cv2", "basicsr", "facexlib", "insightface", "pyiqa", "rawpy", "wandb", "dlib", "openvino"),
    *("spandrel", "spandrel_extra_arches", "submitit", "gradio", "onnxscript"),
]

IMPORT_ALL = """
import importlib, pkgutil, sys

class Filtered:
    # a finder that does not know the blocked packages: also who only asks for them finds them uninstalled
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

BLOCKED = set(sys.argv[1].split())
sys.meta_path[:] = [Filtered(finder) for finder in sys.meta_path]
import face2scene

failures = []
names = ["face2scene"]
def note(name):
    failures.append(f"{name} (its package does not import)")
for module in pkgutil.walk_packages(face2scene.__path__, "face2scene.", onerror=note):
    if module.name.rsplit(".", 1)[-1] == "__main__":
        continue  # it runs the command
    names.append(module.name)
    try:
        importlib.import_module(module.name)
    except BaseException as error:
        failures.append(f"{module.name}: {type(error).__name__}: {error}")
loaded = sorted(BLOCKED & {name.split(".")[0] for name in sys.modules})
print(len(names), "modules")
if failures or loaded:
    sys.exit("These do not import without the optional packages:\\n" + "\\n".join(failures + loaded))
"""


def test_all_modules_import_without_extras():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, " ".join(OPTIONAL)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[-2]) > 5


def test_missing_package_names_its_extra():
    ask = (
        "import sys; sys.modules['rawpy'] = None\n"
        "from face2scene.common.optional import import_optional\n"
        "import_optional('rawpy', 'raw', why='Reading RAW')"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "pip install 'face2scene[raw]'" in done.stderr
