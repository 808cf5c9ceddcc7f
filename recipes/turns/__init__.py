"""The second packaged task, on the pocket backbone as it is: its texts, its gate.

python -m recipes.turns                     write data/turns/ and hold the task against its gate
"""
