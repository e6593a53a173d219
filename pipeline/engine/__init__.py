"""Running one stage: the run folder, runners, worker checks, the lock, progress.

In: a recipe, an output folder and Beam's options. Out: where each table of a run lies,
named by fingerprints, and a stage run on any runner. Begin with `run_folder`, then
`stage_runner`.
"""
