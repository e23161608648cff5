"""What the study of DistilPythia found, as a page: tables, the picture, and the sentences that its numbers allow.

python -m studies.distilpythia.report    makes README.md and results.png again from logs/
"""


def write_report(results):
    pass
