"""Several users at once: answers are streamed as they are written, and one user goes away half way.

python examples/async_streaming.py [MODEL]
"""

import asyncio
import sys

import safevlm

IMAGE = "docs/images/scene.png"


async def serve(engine: safevlm.Engine, user: str, question: str) -> None:
    """Requests take turns at the model; `seed` makes a drawn answer the same every time."""
    how = safevlm.Generation(max_new_tokens=48, temperature=0.7, top_p=0.9, seed=1)
    pieces = [piece async for piece in engine.astream(safevlm.Request(question, images=[IMAGE]), how)]
    print(f"{user}: {len(pieces)} pieces: {''.join(pieces)}")


async def main(model: str = "checkpoints/miniature") -> None:
    engine = safevlm.load(model)
    asked = [serve(engine, f"user {at}", "What is in the picture?") for at in (1, 2)]
    gone = asyncio.create_task(serve(engine, "user 3", "Describe the picture."))
    await asyncio.sleep(0)
    gone.cancel()  # generation stops at its next token, and the others do not wait for it
    await asyncio.gather(*asked)
    print("user 3:", "gone" if (await asyncio.gather(gone, return_exceptions=True))[0] is not None else "answered")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
