"""An artifact's graphs as ``.tflite`` files, without TensorFlow; needs the extra ``lichen[models]``."""

from models.build.tflite.convert import TRANSLATIONS, write_tflite

__all__ = ["TRANSLATIONS", "write_tflite"]
