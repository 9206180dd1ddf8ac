"""A version taken elsewhere: as a Hugging Face folder, as GGUF, or as the adapter alone."""

from tunery.exporting.export import DTYPES, FORMATS, Exported, Source, export

__all__ = ["DTYPES", "FORMATS", "Exported", "Source", "export"]
