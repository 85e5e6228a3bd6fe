"""Public name of [`swinbert.deployment.exporting`]."""

from swinbert.deployment.exporting import ExportedCaptioner, export_captioner

__all__ = ["ExportedCaptioner", "export_captioner"]
