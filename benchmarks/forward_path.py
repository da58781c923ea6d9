"""The way of an image: the frames between a call and the attention kernel, and the names to hold on the way.

    python -m benchmarks.forward_path

Frames are Python functions of the package on the stack when torch's kernel is first called. torch's own frames, two for
each call of a module, are left out. Names to hold are the classes and functions of these frames, and the types of the
package among their variables. Helpers are functions of the package that return before the kernel is called.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch.nn import functional as F

import vitbackbone
from benchmarks.timing import markdown
from vitbackbone import load_backbone

HOME = str(Path(vitbackbone.__file__).parent)


def ours(code: CodeType) -> bool:
    return code.co_filename.startswith(HOME) and not code.co_qualname.endswith(
        ("<listcomp>", "<dictcomp>", "<genexpr>")
    )


def way(call: Callable[[], Any]) -> tuple[list[str], set[str], set[str]]:
    """Return the frames from the outermost to the kernel, the names to hold, and the helpers."""
    stack: list[FrameType] = []
    called: set[tuple[CodeType, str]] = set()  # by whom, and what
    kernel = F.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> Any:
        if not stack:
            sys.setprofile(None)
            frame: FrameType | None = sys._getframe(1)
            while frame is not None:
                stack.extend([frame] if ours(frame.f_code) else [])
                frame = frame.f_back
        return kernel(*args, **kwargs)

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and ours(frame.f_code):
            caller = frame.f_back
            while caller is not None and not ours(caller.f_code):
                caller = caller.f_back
            if caller is not None:
                called.add((caller.f_code, frame.f_code.co_qualname))

    F.scaled_dot_product_attention = watched
    try:
        sys.setprofile(note)
        call()
    finally:
        sys.setprofile(None)
        F.scaled_dot_product_attention = kernel
    frames = [frame.f_code.co_qualname for frame in reversed(stack)]
    types = {
        type(value).__name__
        for frame in stack
        for value in frame.f_locals.values()
        if type(value).__module__.startswith("vitbackbone.")
    }
    helpers = {name for caller, name in called if caller in {frame.f_code for frame in stack}} - set(frames)
    return frames, types | {name.removesuffix(".forward").split(".")[-1] for name in frames}, helpers


def main() -> None:
    backbone, images = load_backbone("nano"), torch.randn(2, 3, 32, 32)
    calls: dict[str, Callable[[], Any]] = {
        "backbone(images)": lambda: backbone(images),
        "forward_layers": lambda: backbone.forward_layers(images, [-1]),
        "images of mixed sizes": lambda: backbone([images[0], images[1, :, :16]]),
        "forward_prefix": lambda: backbone.forward_prefix(images, [-1]),
    }
    rows = []
    for name, call in calls.items():
        with torch.inference_mode():
            frames, names, helpers = way(call)
        shown = (" → ".join(frames), ", ".join(sorted(names)))
        rows.append((name, len(frames), shown[0], len(names), shown[1], len(helpers)))
    print(markdown(["call", "frames", "which", "names", "which", "helpers"], rows))


if __name__ == "__main__":
    main()
