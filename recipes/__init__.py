"""What both programs share: recipes as Python files, and the habits of commands.

In: a recipe's file and the words of a command line. Out: a checked configuration, or
one line that says what is wrong, with exit code 2. `recipe_file` loads, `assignments`
reads `--set`, `settings` checks types, `plain_values` prints a configuration as JSON
and builds it again. `command_line` has flags and exit codes. Begin with `recipe_file`.
"""
