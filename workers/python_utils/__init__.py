"""``triton_python_backend_utils``, the module that Triton's Python models import.

Names, signatures and texts are Triton's, because models and clients know them; hence methods where an attribute would
do.
"""
