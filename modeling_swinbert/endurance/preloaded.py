"""What takes seconds to import, for all processes that try cases."""

from swinbert.cli.messages import quiet_imports

quiet_imports()

import swinbert.endurance.targets  # noqa: E402, F401
