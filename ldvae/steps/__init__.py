"""The steps of the workflow, one module each: files in, files out."""
