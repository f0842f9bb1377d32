"""accelerate remembers its processes for the life of a Python; tests that train start without that memory."""

from accelerate.state import AcceleratorState, GradientState


def forget_processes() -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
