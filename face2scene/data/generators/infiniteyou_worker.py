"""The worker process with InfiniteYou's pipeline: one JSON object per line in, one out.

Runs in InfiniteYou's own environment, with its checkout on PYTHONPATH, and imports nothing else of this project. The
first line holds the settings. Answers go to the original standard output; output of the libraries goes to standard
error. The program ends with its input.
"""

import json
import os
import sys
import traceback


def main():
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)  # prints of the libraries go to standard error

    def answer(**values):
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    settings = json.loads(sys.stdin.readline())
    try:
        from PIL import Image
        from pipelines.pipeline_infu_flux import InfUFluxPipeline

        pipeline = InfUFluxPipeline(**settings["pipeline"])
        if settings["loras"]:
            pipeline.load_loras(settings["loras"])
    except (Exception, SystemExit) as error:  # it calls exit() when its base model does not load
        traceback.print_exc()
        answer(ready=False, error=f"{type(error).__name__}: {error}")
        return 1
    answer(ready=True)
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        try:
            with Image.open(job["reference"], formats=["PNG", "JPEG"]) as photo:
                image = pipeline(
                    id_image=photo.convert("RGB"), prompt=job["prompt"], seed=job["seed"], **settings["call"]
                )
            partial = job["output"] + ".partial"
            image.convert("RGB").save(partial, format="PNG", compress_level=1)
            os.replace(partial, job["output"])
        except Exception as error:
            traceback.print_exc()
            answer(id=job["id"], ok=False, error=f"{type(error).__name__}: {error}")
        else:
            answer(id=job["id"], ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
