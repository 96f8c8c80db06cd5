"""Script steps: JavaScript and Python of a capability's author, run in interpreters that can reach nothing.

A script sees `context`, assigns `result`, and gets no files, network, processes, environment or host objects. Every
interpreter is a child process, so whatever a script does to it, the server goes on.
"""

from toolcrib.capability.scripts.engine import Script, Scripts
from toolcrib.capability.scripts.limits import ScriptLimits

__all__ = ["Script", "ScriptLimits", "Scripts"]
