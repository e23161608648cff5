"""distill.py without a mask: padding is trained on as well.

python -m studies.distilpythia.no_mask config/distilpythia_small/student.py
"""

from studies.distilpythia.masks import distill_with, no_mask

if __name__ == "__main__":
    distill_with(no_mask)
