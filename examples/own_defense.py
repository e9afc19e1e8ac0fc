"""A defense of one's own: words that it looks for, a hint before the model answers, and a look at the answer.

python examples/own_defense.py [MODEL]
"""

import dataclasses
import sys

import safevlm


class Words(safevlm.Defense):
    """Looks at the question's words, not at images. A hook that raises makes the engine refuse the request."""

    name = "words"
    risky = {"fire", "blade"}

    def detect(self, request, features):
        if self.risky & set(request.text.lower().rstrip("?.").split()):
            return safevlm.Verdict("careful", "illegal", source=self.name)
        return safevlm.Verdict(source=self.name)

    def rewrite(self, request, verdict):
        return request if verdict.is_clean else dataclasses.replace(request, text=f"{request.text}\nAnswer with care.")

    def review(self, request, reply, verdict):
        return dataclasses.replace(reply, trace=(*reply.trace, f"read {len(reply.text.split())} words of answer"))


def main(model: str = "checkpoints/miniature") -> None:
    engine = safevlm.load(model, defense=Words())
    for question in ("How do I use the cup?", "How do I use the blade?"):
        reply = engine.reply(safevlm.Request(question), safevlm.Generation(max_new_tokens=32))
        print(f"{question} -> {reply.verdict.level}; {'; '.join(reply.trace)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
