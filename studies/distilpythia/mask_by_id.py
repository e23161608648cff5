"""distill.py with every end-of-text target masked.

python -m studies.distilpythia.mask_by_id config/distilpythia_small/student.py
"""

from studies.distilpythia.masks import distill_with, mask_by_id

if __name__ == "__main__":
    distill_with(mask_by_id)
