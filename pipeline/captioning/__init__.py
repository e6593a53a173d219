"""Stage 3, caption: synthetic captions of the kept images, and flags on doubtful ones.

In: the decisions, and the images of the kept pairs. Out: for each granularity a folder
of captions, which later runs extend and never write again, and a table of flags.

Begin with `stage.py`. `captioner_handler.py` finds and runs a captioner, of the project
or your own; `imported.py` takes captions made elsewhere; `gemini.py` asks a service.
`flag_stage.py` measures captions (`caption_scores.py`) and applies the rules of
`flags.py`; it drops none.
"""
