"""The report: the paper's claims and their verdicts, the gallery of figures and tables, reference results."""
