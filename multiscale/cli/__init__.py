"""The commands: options, their help, and nothing else.

Importing any of them sets the process up as a command first: importing PyTorch takes seconds, and Ctrl-C may come then.
"""

from dnnlib.console import make_patient
from dnnlib.signals import interrupt_quietly

make_patient()
interrupt_quietly()
