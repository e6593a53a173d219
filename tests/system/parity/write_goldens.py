"""Writes `tests/support/goldens/paligemma.json` with PyTorch.

python -m tests.system.parity.write_goldens
"""

import json
import tempfile
from pathlib import Path

from tests.support import goldens, tiny_checkpoints
from tests.system.parity import hugging_face


def main() -> None:
    answers = {}
    for family in goldens.FAMILIES:
        for rng_seed in goldens.RNG_SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                path = tiny_checkpoints.write_paligemma(Path(folder), family, rng_seed)
                answers[goldens.checkpoint_name(family, rng_seed)] = {
                    question.name: hugging_face.answers(path, question).tolist()
                    for question in goldens.QUESTIONS
                }
    lines = json.dumps(answers, indent=0, separators=(",", ":"))
    goldens.FILE.write_text(lines.replace(",\n", ",") + "\n")


if __name__ == "__main__":
    main()
