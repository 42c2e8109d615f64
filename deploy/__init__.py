"""A network -> an artefact that production runs, proven before it is handed over."""
