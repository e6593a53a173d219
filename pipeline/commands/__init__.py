"""The commands of `pipeline.run`: their flags, their checks, and what each one does.

In: the words of a command line. Out: lines on the screen and an exit code; the work is
done by the packages below. `arguments` has the flags, `preflight` lists what can be
wrong, `running` and `look` do what is asked. Begin with `preflight.CHECKS`.
"""
