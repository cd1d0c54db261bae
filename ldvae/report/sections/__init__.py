"""The sections of a dataset's report, one module each: tables of the results in, what the template shows out."""
