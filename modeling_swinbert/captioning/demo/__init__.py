"""A page, an API and an MCP tool around one captioner; its libraries are the extra `demo`."""
