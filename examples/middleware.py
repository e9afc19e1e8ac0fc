"""Guard a function that asks a model somewhere else: look first, and ask only where the guard lets it.

python examples/middleware.py [MODEL]
"""

import sys

import safevlm

RISKY = ("may_refuse", "must_refuse")
REFUSAL = "I cannot help with that."


def guarded(engine, ask):
    """`ask(request)` behind the guard, with the same arguments and the same kind of answer."""

    def asked(request):
        try:
            verdict = engine.look(request)
        except (OSError, ValueError):  # an image that does not open was not looked at
            return REFUSAL
        if verdict.error or not verdict.looked or verdict.level in RISKY:
            return REFUSAL
        return ask(request)

    return asked


def main(model: str = "checkpoints/miniature") -> None:
    engine = safevlm.load(model, defense="safe-clip")
    ask = guarded(engine, lambda request: f"(the model's answer to {request.text!r})")
    for image in ("docs/images/scene.png", "docs/images/scene_refused.png", "docs/images/none.png"):
        print(f"{image}: {ask(safevlm.Request('What is in the picture?', images=[image]))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
