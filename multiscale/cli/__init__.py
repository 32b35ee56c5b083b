"""The commands: options, their words, and nothing else.

The first import of any command makes the process one: PyTorch's takes seconds, in which Ctrl-C may come too.
"""

from dnnlib.console import make_patient
from dnnlib.signals import interrupt_quietly

make_patient()
interrupt_quietly()
