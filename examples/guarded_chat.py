"""Talk about one image; each line of input is a question. Says beneath an answer what the guard saw.

python examples/guarded_chat.py [MODEL [IMAGE [DEFENSE]]]
"""

import sys

import safevlm

MODEL, IMAGE, DEFENSE = "checkpoints/miniature", "docs/images/scene.png", "safe-clip"


def main(model: str = MODEL, image: str = IMAGE, defense: str = DEFENSE) -> None:
    engine = safevlm.load(model, defense=defense)
    history: list[tuple[str, str]] = []
    for line in sys.stdin:
        question = line.strip()
        reply = engine.reply(safevlm.Request(question, images=[image], history=history))
        verdict = reply.verdict
        seen = f"{verdict.level}, {verdict.category}" if verdict.looked else "not looked"
        print(f"> {question}\n{reply.text}\n  [{verdict.source}: {seen}{'; refused' if reply.refused_by else ''}]")
        history.append((question, reply.text))


if __name__ == "__main__":
    main(*sys.argv[1:])
