"""Optional packages, imported where they are used."""

import importlib
from types import ModuleType


def import_optional(module: str, extra: str, *, why: str) -> ModuleType:
    """Import `module`; if it is missing, the error names the extra that installs it.

    Args:
        module: import name, such as `cv2`.
        extra: the extra of this package that installs it, such as `faces`.
        why: what it is needed for, as the subject of the sentence: "Face detection".

    Raises:
        ModuleNotFoundError: with the install command in its message.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is installed, and one that it imports is missing
        raise ModuleNotFoundError(
            f"{why} needs the package '{module}', which is not installed: pip install 'face2scene[{extra}]'",
            name=module,
        ) from error
