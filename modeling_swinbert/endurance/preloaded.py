"""What all targets but those of videos need and takes seconds to import: once, for all processes that try cases."""

from swinbert.cli.messages import quiet_imports

quiet_imports()

import swinbert.processing.pipeline_swinbert  # noqa: E402, F401
