"""`python -m swinbert.training.studies` reruns the paper's findings on moving shapes."""

import sys

from swinbert.training.studies import main

sys.exit(main())
