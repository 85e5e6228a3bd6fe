"""A page, an API and MCP tools around one captioner; its libraries are the extra `demo`."""

import os

# Before Gradio is imported: it would tell its makers that it was started.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
